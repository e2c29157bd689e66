// Operators that allocate device memory or create views of it, which a CPU kernel on host tensors
// cannot do.
#include <cstring>

#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "memory.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::Tensor;

const c10::DispatchKeySet kCuda(c10::DispatchKey::CUDA);

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool> pinned,
             std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &heap(), kCuda, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                     std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device> device, std::optional<bool> pinned) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &heap(), kCuda,
                                           c10::dtype_or_default(dtype));
}

const Tensor& resize(const Tensor& self, at::IntArrayRef size,
                     std::optional<at::MemoryFormat> format) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format.value_or(at::MemoryFormat::Contiguous) != at::MemoryFormat::Contiguous)
    impl->empty_tensor_restride(*format);
  const c10::Storage& old = self.storage();
  const size_t bytes = (size_t(self.numel()) + size_t(self.storage_offset())) * self.element_size();
  if (bytes <= old.nbytes()) return self;
  c10::DataPtr fresh = heap().allocate(bytes);
  if (!dry() && old.nbytes() > 0)
    std::memcpy(bytes_of(fresh.get()), bytes_of(old.data()), old.nbytes());
  old.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
  old.unsafeGetStorageImpl()->set_nbytes(bytes);
  return self;
}

Tensor view(const Tensor& self, at::IntArrayRef size) {
  return at::native::view(self, size);
}

Tensor as_strided(const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                  std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

Tensor reshape_alias(const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}

Tensor& set_storage(Tensor& self, c10::Storage storage, int64_t offset, at::IntArrayRef size,
                    at::IntArrayRef stride) {
  TORCH_CHECK(storage.device().is_cuda(),
              "Attempted to set the storage of a tensor on cuda:0 to "
              "a storage on ",
              storage.device());
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(),
                     source.strides());
}

Tensor& set_nothing(Tensor& self) {
  const Tensor none = empty_on_device({0}, self.scalar_type());
  return set_tensor(self, none);
}

void record_stream(Tensor&, c10::Stream) {}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("resize_", &resize);
  library.impl("view", &view);
  library.impl("as_strided", &as_strided);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("set_", &set_nothing);
  library.impl("record_stream", &record_stream);
}

}  // namespace fake_cuda
