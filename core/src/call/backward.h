// Tracks which component autograd is in. Autograd runs a component's backward pass long after its
// forward pass has returned, and for CUDA tensors on another thread. The forward pass therefore
// registers hooks on its outputs, which run when autograd enters the component, and on its inputs,
// which run when autograd leaves it. Hooks add no nodes, so gradients stay bit-identical.
#pragma once

#include <atomic>

#include <ATen/core/Tensor.h>

#include "call/call.h"

namespace dsv3 {

/// Action name for Strategy::backward. During that call, `current_backward` identifies the
/// component.
extern const char* const kBackward;

/// Process-wide, because only one backward pass runs at a time. Safe to read from a signal handler.
struct CurrentBackward {
  std::atomic<const Callee*> callee{nullptr};  ///< null = outside any component
  std::atomic<int64_t> layer{-1};
  std::atomic<const void*> thread{nullptr};  ///< autograd's thread: its &CallRecord::current()
};
extern CurrentBackward current_backward;

/// Records that autograd has left all components.
void leave_backward() noexcept;

/// Registers the hooks for the forward pass that CallRecord::current() describes.
void mark_forward(at::TensorList inputs, at::TensorList outputs);

}  // namespace dsv3
