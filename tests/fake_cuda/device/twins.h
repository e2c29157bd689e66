// Twins: host tensors that share the bytes of device tensors. The fake device's kernels run on
// twins.
#pragma once

#include <ATen/core/Tensor.h>

namespace fake_cuda {

/// Returns a CPU tensor (a meta tensor in a dry run) with the sizes, strides and bytes of the
/// device tensor `tensor`. Returns undefined tensors and tensors on other devices unchanged.
at::Tensor twin(const at::Tensor& tensor);

/// Returns a new device tensor with the sizes, strides and values of the CPU or meta tensor
/// `tensor`. Returns undefined tensors and device tensors unchanged.
at::Tensor to_device(const at::Tensor& tensor);

/// Returns a new, uninitialised device tensor.
at::Tensor empty_on_device(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace fake_cuda
