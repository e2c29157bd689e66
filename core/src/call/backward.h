// Which component autograd is in. Autograd runs a component's backward long after its forward
// returned, and on a CUDA device on another thread. So a forward registers a hook on its results,
// which runs when autograd enters the component, and one on its inputs, which runs when autograd
// leaves it. Hooks add no nodes, so the graph, the order of sums and therefore every bit stay the
// same.
#pragma once

#include <atomic>

#include <ATen/core/Tensor.h>

#include "call/call.h"

namespace dsv3 {

/// The action of Strategy::backward: inside it, autograd runs what `current_backward` names.
extern const char* const kBackward;

/// Readable from a signal handler; of the whole process, because one backward runs at a time.
struct CurrentBackward {
  std::atomic<const Callee*> callee{nullptr};  ///< null: code of no component
  std::atomic<int64_t> layer{-1};
  std::atomic<const void*> thread{nullptr};  ///< &CallRecord::current() of the thread
};
extern CurrentBackward current_backward;

/// Autograd is in no component, until a hook says otherwise.
void leave_backward() noexcept;

/// Hangs the hooks of the forward that CallRecord::current() describes on its tensors.
void mark_forward(at::TensorList inputs, at::TensorList outputs);

}  // namespace dsv3
