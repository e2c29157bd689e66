// The branch for devices returns a wrong gradient. Variants:
//   unwritten  memory that nobody wrote
//   undefined  no gradient, so that earlier layers are not trained
//   shape      one row too few
//   host       a gradient on the host
#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {
namespace {

at::Tensor wrong(const at::Tensor& grad) {
  const std::string& variant = mutant::variant();
  if (variant == "unwritten") return at::empty_like(grad);
  if (variant == "undefined") return {};
  if (variant == "shape") return grad.narrow(0, 1, grad.size(0) - 1);
  return grad.cpu();
}

}  // namespace

DSV3_MUTANT at::Tensor swiglu(const at::Tensor& gate_up, const at::Tensor& row_weights) {
  const at::Tensor y = mutant::replaced(&swiglu)(gate_up, row_weights);
  return y.is_cpu() ? y : mutant::with_backward(y, wrong);
}

}  // namespace dsv3
