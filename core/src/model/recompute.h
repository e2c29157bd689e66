// Activation checkpointing: saves a function's inputs instead of its activations and reruns it in
// backward.
#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dsv3 {

using Tensors = std::vector<at::Tensor>;

/// `repeated` is true in the second run.
using Recomputable = std::function<Tensors(const Tensors& inputs, bool repeated)>;

/// Returns fn(inputs). Backward reruns fn and differentiates it; gradients of fn's parameters
/// accumulate in this nested backward. Bit-identical to fn(inputs) if fn is deterministic.
Tensors run_recomputed(Recomputable fn, const Tensors& inputs);

}  // namespace dsv3
