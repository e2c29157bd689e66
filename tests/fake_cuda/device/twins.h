// Twins: host tensors that share the bytes of device tensors, for kernels of the fake device.
#pragma once

#include <ATen/core/Tensor.h>

namespace fake_cuda {

/// A CPU tensor (in a dry run: a meta tensor) with the sizes, strides and bytes of the device
/// tensor `tensor`. Returns other tensors and undefined ones as they are.
at::Tensor twin(const at::Tensor& tensor);

/// A new device tensor with the sizes, strides and values of the CPU or meta tensor `tensor`.
/// Returns device tensors and undefined ones as they are.
at::Tensor to_device(const at::Tensor& tensor);

/// A new device tensor whose values are not written.
at::Tensor empty_on_device(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace fake_cuda
