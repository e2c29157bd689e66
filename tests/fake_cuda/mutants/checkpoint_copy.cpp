// Checkpoints are saved without a complete copy of the tensors. Variants:
//   none  the file is written from the tensor's own memory
//   async the file is written before the copy to the host is complete
#include "checkpoint/tensor_views.h"
#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT at::Tensor add_view(std::map<std::string, safetensors::View>& views,
                                const std::string& key, const at::Tensor& tensor) {
  const at::Tensor own = tensor.detach().contiguous();
  const at::Tensor host =
      mutant::variant() == "async" ? own.to(at::kCPU, /*non_blocking=*/true) : own;
  views.emplace(key, safetensors::View{dtype_name(host.scalar_type()), host.sizes().vec(),
                                       host.const_data_ptr(), host.nbytes()});
  return host;
}

}  // namespace dsv3
