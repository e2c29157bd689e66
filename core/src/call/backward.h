// Tracks which component autograd is in. Autograd runs a component's backward pass long after its
// forward pass has returned, and for CUDA tensors on another thread. The forward pass therefore
// registers hooks on its outputs, which run when autograd enters the component, and on its inputs,
// which run when autograd leaves it. Hooks add no nodes, so gradients stay bit-identical.
#pragma once

#include <atomic>

#include <ATen/core/Tensor.h>

#include "call/call.h"

namespace dsv3 {

/// Value of CallRecord::action during Strategy::backward. While it is set, `current_backward`
/// identifies the component that autograd is in.
extern const char* const kBackward;

/// The component that autograd is in. Process-wide, because only one backward pass runs at a time.
/// Safe to read from a signal handler.
struct CurrentBackward {
  std::atomic<const Callee*> callee{nullptr};  ///< null = outside any component
  std::atomic<int64_t> layer{-1};
  /// autograd's thread, identified by the address of CallRecord::current()
  std::atomic<const void*> thread{nullptr};
};
extern CurrentBackward current_backward;

/// Records that the backward pass no longer runs inside any component.
void leave_backward() noexcept;

/// Registers hooks on the inputs and outputs of the forward pass that CallRecord::current()
/// describes.
void mark_forward(at::TensorList inputs, at::TensorList outputs);

}  // namespace dsv3
