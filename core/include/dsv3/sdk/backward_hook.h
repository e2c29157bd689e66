// Lets strategies act when the backward pass reaches a tensor.
#pragma once

#include <functional>

#include <dsv3/sdk/strategy.h>

namespace dsv3 {

/// Calls `action` in the backward pass, once the gradients of all differentiable tensors among
/// `tensors` are known and before they are passed on. Replaces these tensors by new ones with equal
/// values. Does nothing, and returns false, if none is differentiable or gradients are disabled.
///
/// In Strategy::leave(), the action runs before the backward pass of the unit, because autograd
/// runs nodes in the reverse order of their creation. In Strategy::enter(), it runs after all nodes
/// of the unit, including the accumulation of its parameters' gradients. Actions run on the thread
/// that called backward() on a CPU, and on autograd's thread for the device on a GPU.
bool on_backward(TensorRefs tensors, std::function<void()> action);

}  // namespace dsv3
