#include "call/backward.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>

namespace dsv3 {

const char* const kBackward = "backward";
CurrentBackward current_backward;

namespace {

void enter_backward(const Callee* callee, int64_t layer) noexcept {
  constexpr auto relaxed = std::memory_order_relaxed;
  current_backward.callee.store(callee, relaxed);
  current_backward.layer.store(layer, relaxed);
  current_backward.thread.store(&CallRecord::current(), relaxed);
}

/// Registers hooks on `tensors` that record when autograd enters `call`'s component. Skips leaves,
/// because a hook on a parameter would never be removed. Also skips tensors in `others`, which the
/// component returned unchanged: none of its operations produced them.
void hook(const CallRecord* call, at::TensorList tensors, at::TensorList others) {
  const Callee* callee = call ? &call->callee : nullptr;
  const int64_t layer = call ? call->layer() : -1;
  for (const at::Tensor& tensor : tensors) {
    const auto same = [&](const at::Tensor& other) { return tensor.is_same(other); };
    if (tensor.requires_grad() && !tensor.is_leaf() &&
        std::none_of(others.begin(), others.end(), same))
      tensor.register_hook([callee, layer](const at::Tensor&) { enter_backward(callee, layer); });
  }
}

}  // namespace

void leave_backward() noexcept {
  enter_backward(nullptr, -1);
}

void mark_forward(at::TensorList inputs, at::TensorList outputs) {
  const CallRecord* call = CallRecord::current();
  if (!call || !at::GradMode::is_enabled()) return;
  // After this component's backward pass, autograd continues in the enclosing component, if there
  // is one.
  const CallRecord* outer = call->outer;
  hook(outer && outer->action != kBackward ? outer : nullptr, inputs, outputs);
  hook(call, outputs, inputs);
}

}  // namespace dsv3
