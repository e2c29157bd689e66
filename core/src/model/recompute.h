// Activation checkpointing: keep a function's inputs instead of what it saves, and run it again in
// backward.
#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dsv3 {

using Tensors = std::vector<at::Tensor>;

/// `recompute` is true in the second run.
using Recomputable = std::function<Tensors(const Tensors& inputs, bool recompute)>;

/// fn(inputs) whose backward runs fn again and differentiates that. Gradients of parameters that fn
/// uses accumulate in the nested backward. Equal bits to fn(inputs) when fn gives the same values
/// twice.
Tensors run_recomputed(Recomputable fn, const Tensors& inputs);

}  // namespace dsv3
