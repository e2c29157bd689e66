// The forward pass sets a thread-local variable that the backward pass reads. On a CPU, both run on
// the main thread. On a device, the backward pass runs on a thread of autograd.
#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {
namespace {

thread_local double gradient_scale = 0;

}  // namespace

DSV3_MUTANT at::Tensor swiglu(const at::Tensor& gate_up, const at::Tensor& row_weights) {
  gradient_scale = 1;
  const at::Tensor y = mutant::replaced(&swiglu)(gate_up, row_weights);
  return mutant::with_backward(y, [](const at::Tensor& grad) { return grad * gradient_scale; });
}

}  // namespace dsv3
