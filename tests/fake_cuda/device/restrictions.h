// What CUDA's kernels reject and the CPU's accept.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

/// Throws c10::Error if CUDA's kernel of the operator `name` would reject `arguments`: a dtype that
/// it does not implement, or an operator that is not deterministic while LibTorch's deterministic
/// algorithms are required.
void check_restrictions(const std::string& name, const std::vector<c10::IValue>& arguments);

}  // namespace fake_cuda
