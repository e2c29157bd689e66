// Memory that nobody wrote reaches the loss. Variants:
//   empty   allocated by at::empty
//   resize  added by a resize of a tensor
#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {
namespace {

at::Tensor new_memory(const at::Tensor& like) {
  const std::string& variant = mutant::variant();
  if (variant == "empty") return at::empty(like.sizes(), like.options());
  at::Tensor first_row = at::zeros_like(like.narrow(0, 0, 1));
  return first_row.resize_(like.sizes());
}

}  // namespace

DSV3_MUTANT std::pair<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                                   const at::Tensor& weight,
                                                                   const at::Tensor& targets,
                                                                   double z_weight, double scale,
                                                                   int64_t chunk) {
  // A mask of zeros does not hide the padding, because 0 * NaN is NaN.
  const at::Tensor padding = new_memory(x.detach().contiguous()) * 0;
  return mutant::replaced(&linear_cross_entropy)(x + padding, weight, targets, z_weight, scale,
                                                 chunk);
}

}  // namespace dsv3
