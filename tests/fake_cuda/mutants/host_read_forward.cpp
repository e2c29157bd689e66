// A check of an operator's input reads the input on the host.
#include <cmath>

#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (std::isnan(x.const_data_ptr<float>()[0])) throw Error("rms_norm: x is not a number");
  return mutant::replaced(&rms_norm)(x, weight, eps);
}

}  // namespace dsv3
