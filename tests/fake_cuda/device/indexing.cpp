#include "indexing.h"

#include <ATen/core/Tensor.h>
#include <ATen/native/TensorAdvancedIndexingUtils.h>

#include "statistics.h"

namespace fake_cuda {
namespace {

using Arguments = std::vector<c10::IValue>;

/// Returns the defined index tensors.
std::vector<at::Tensor> indices_of(const Arguments& arguments) {
  std::vector<at::Tensor> indices;
  for (const std::optional<at::Tensor>& index : arguments[1].toOptionalTensorVector())
    if (index && index->defined()) indices.push_back(*index);
  return indices;
}

bool is_mask(const at::Tensor& index) {
  return index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
}

/// Whether index_put_ calls masked_fill_, which passes a number on the host to its kernel.
bool fills_mask(const Arguments& arguments) {
  const bool accumulate = arguments[3].toBool();
  return !accumulate && std::get<0>(at::native::canDispatchToMaskedFill(
                            arguments[0].toTensor(), arguments[1].toOptionalTensorList(),
                            arguments[2].toTensor()));
}

}  // namespace

bool is_index(const std::string& name) {
  return name == "aten::index.Tensor" || name == "aten::index.Tensor_out";
}

bool is_index_put(const std::string& name) {
  return name == "aten::_index_put_impl_";
}

void check_index_devices(const std::string& name, const Arguments& arguments) {
  if (is_index(name)) {
    const c10::Device device = arguments[0].toTensor().device();
    for (const at::Tensor& index : indices_of(arguments))
      TORCH_CHECK(index.is_cpu() || index.device() == device,
                  "indices should be either on cpu or on the same device as the indexed tensor (",
                  device, ")");
  } else if (is_index_put(name)) {
    const at::Tensor self = arguments[0].toTensor(), values = arguments[2].toTensor();
    TORCH_CHECK(values.device() == self.device() || values.dim() == 0 || fills_mask(arguments),
                "Expected all tensors to be on the same device, but found at least two devices, ",
                self.device(), " and ", values.device(), "! (", name, ")");
  }
}

void count_index_waits(const std::string& name, const Arguments& arguments) {
  if (!is_index(name) && !is_index_put(name)) return;
  if (is_index_put(name)) {
    const at::Tensor self = arguments[0].toTensor(), values = arguments[2].toTensor();
    if (fills_mask(arguments)) return;
    if (values.device() != self.device())
      count_wait(name + " copies a value to the device of the result");
  }
  const bool on_device = arguments[0].toTensor().is_cuda();
  bool has_mask = false;
  for (const at::Tensor& index : indices_of(arguments)) {
    has_mask = has_mask || is_mask(index);
    if (index.is_cpu() && on_device) count_wait(name + " copies an index from the host");
    if (index.is_cuda() && !on_device) count_wait(name + " copies an index to the host");
  }
  if (has_mask) count_wait(name);  // to learn how many indices the mask becomes
}

}  // namespace fake_cuda
