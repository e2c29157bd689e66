// Dry runs, in which operators compute only the sizes of their results.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>

namespace fake_cuda {

/// Replaces the operator's arguments on top of `stack`, which are meta tensors, with meta tensors
/// for its results. Uses the operator's Meta kernel, or a rule in dry.cpp if LibTorch implements
/// that kernel only in Python. `arguments` are the original arguments on the device.
void run_dry(const c10::OperatorHandle& operation, const std::string& name,
             const std::vector<c10::IValue>& arguments, torch::jit::Stack* stack);

}  // namespace fake_cuda
