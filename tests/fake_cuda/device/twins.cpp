#include "twins.h"

#include <algorithm>
#include <cstring>

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_strided.h>

#include "memory.h"

namespace fake_cuda {

at::Tensor twin(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  if (dry())
    return at::empty_strided(tensor.sizes(), tensor.strides(),
                             at::TensorOptions().dtype(tensor.dtype()).device(at::kMeta));
  const c10::Storage& storage = tensor.storage();
  void* data = storage.data() ? bytes_of(storage.data()) : nullptr;
  // The storage is resizable, because kernels may enlarge their out= arguments.
  c10::Storage host(c10::Storage::use_byte_size_t(), storage.nbytes(),
                    c10::DataPtr(data, c10::Device(at::kCPU)), c10::GetAllocator(at::kCPU), true);
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      std::move(host), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) impl->_set_conj(true);
  if (tensor.is_neg()) impl->_set_neg(true);
  return at::Tensor(std::move(impl));
}

at::Tensor to_device(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cuda()) return tensor;
  const at::Tensor result = at::detail::empty_strided_generic(
      tensor.sizes(), tensor.strides(), &heap(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
      tensor.scalar_type());
  if (dry() || tensor.numel() == 0) return result;
  const size_t skipped = size_t(tensor.storage_offset()) * tensor.element_size();
  std::memcpy(bytes_of(result.storage().data()),
              static_cast<const char*>(tensor.storage().data()) + skipped,
              std::min(result.storage().nbytes(), tensor.storage().nbytes() - skipped));
  return result;
}

at::Tensor empty_on_device(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::detail::empty_generic(sizes, &heap(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype, std::nullopt);
}

}  // namespace fake_cuda
