// Dry runs: operators compute the sizes of their results and nothing else.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>

namespace fake_cuda {

/// Replaces the arguments of `operation` on `stack` (meta tensors, the last of the stack) by meta
/// tensors of its results: by its Meta kernel, or by a rule of its own where LibTorch has no Meta
/// kernel in C++. `arguments` are the original ones.
void run_dry(const c10::OperatorHandle& operation, const std::string& name,
             const std::vector<c10::IValue>& arguments, torch::jit::Stack* stack);

}  // namespace fake_cuda
