// The fast grouped matrix product is used without its conditions. Variants:
//   rows  rows whose length is not a multiple of 16 bytes
//   ends  offsets in int64
#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& ends) {
  const at::Tensor offsets = mutant::variant() == "ends" ? ends.to(at::kLong) : ends;
  return at::_grouped_mm(x.contiguous(), weight.transpose(1, 2), offsets);
}

}  // namespace dsv3
