// The gradient norm uses the loop for CPUs on every device.
#include <cmath>

#include <dsv3/sdk/flat.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT at::Tensor norm_of(at::TensorList tensors, at::Device device) {
  double sum = 0;
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    const float* values = tensor.const_data_ptr<float>();
    for (int64_t i = 0; i < tensor.numel(); ++i) sum += double(values[i]) * values[i];
  }
  return at::full({}, std::sqrt(sum), at::TensorOptions().dtype(at::kDouble).device(device));
}

}  // namespace dsv3
