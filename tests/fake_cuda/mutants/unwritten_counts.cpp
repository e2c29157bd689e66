// The number of tokens of each expert starts with integers that nobody wrote.
#include <dsv3/sdk/expert_rows.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT ExpertRows sort_by_expert(const at::Tensor& chosen, int64_t experts) {
  const at::NoGradGuard no_grad;
  ExpertRows rows = mutant::replaced(&sort_by_expert)(chosen, experts);
  const at::Tensor flat = chosen.reshape({-1});
  rows.counts = at::empty({experts}, flat.options()).scatter_add_(0, flat, at::ones_like(flat));
  rows.ends = rows.counts.cumsum(0).to(at::kInt);
  return rows;
}

}  // namespace dsv3
