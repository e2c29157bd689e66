// Rotation angles are cached by the address of their positions. The next micro-batch has other
// positions, often at the same address, because the allocator reuses memory.
#include <dsv3/sdk/angles.h>

#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT std::pair<at::Tensor, at::Tensor> Angles::on_device(const at::Tensor& positions,
                                                                at::ScalarType dtype) const {
  static const void* address = nullptr;
  static std::pair<at::Tensor, at::Tensor> cached;
  if (address == positions.const_data_ptr() &&
      cached.first.sizes().slice(0, 2).equals(positions.sizes()))
    return cached;
  const at::Tensor rates = at::tensor(frequencies_, at::kDouble).to(positions.device());
  const at::Tensor angles = positions.to(at::kDouble).unsqueeze(-1) * rates;
  address = positions.const_data_ptr();
  cached = {(angles.cos() * scale_).to(dtype), (angles.sin() * scale_).to(dtype)};
  return cached;
}

}  // namespace dsv3
