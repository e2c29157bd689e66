// Tensors over memory of the other side. Variants:
//   host    a host tensor over device memory
//   device  a device tensor over host memory
#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_meta()) return mutant::replaced(&rms_norm)(x, weight, eps);  // a measurement
  const at::Tensor rows = x.detach().contiguous();
  if (mutant::variant() == "host") {
    const at::Tensor view = at::from_blob(rows.mutable_data_ptr(), rows.sizes(), at::kFloat);
    if (view.isnan().any().item<bool>()) throw Error("rms_norm: x has values that are NaN");
  } else {
    static float ones[1024];
    std::fill(std::begin(ones), std::end(ones), 1.0f);
    const at::Tensor view = at::for_blob(ones, weight.sizes())
                                .options(weight.options())
                                .target_device(weight.device())
                                .make_tensor();
    return mutant::replaced(&rms_norm)(x, weight * view, eps);
  }
  return mutant::replaced(&rms_norm)(x, weight, eps);
}

}  // namespace dsv3
