// Correct results at a higher cost. Variants:
//   copies  needless copies of activations
//   leak    activations that are never freed
//   mask    attention with an explicit mask, which rules out flash kernels
#include <vector>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  static auto& leaked = *new std::vector<at::Tensor>;
  if (mutant::variant() == "leak") leaked.push_back(x.detach().clone());
  const at::Tensor input = mutant::variant() == "copies" ? x.clone() : x;
  return mutant::replaced(&rms_norm)(input, weight, eps);
}

DSV3_MUTANT at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const Sequence& seq, const AttendOptions& options) {
  Sequence masked = seq;
  if (mutant::variant() == "mask" && !seq.packing) {
    const int64_t length = q.size(1);
    masked.packing = std::make_shared<Packing>(
        at::ones({q.size(0), 1, length, length}, q.options().dtype(at::kBool)).tril_());
  }
  return mutant::replaced(&attend)(q, k, v, masked, options);
}

}  // namespace dsv3
