// Stored weights are written to the tensors' memory by the host, on every device.
#include <cstring>

#include "checkpoint/tensor_views.h"
#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT void copy_view(const std::map<std::string, safetensors::View>& views,
                           const std::string& key, const at::Tensor& tensor) {
  const safetensors::View& view = views.at(key);
  std::memcpy(tensor.mutable_data_ptr(), view.bytes, view.size);
}

}  // namespace dsv3
