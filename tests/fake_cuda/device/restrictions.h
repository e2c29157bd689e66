// Checks for arguments that CUDA's kernels reject but the CPU's accept.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

/// Throws c10::Error if CUDA's kernel for the operator `name` would reject `arguments`: because it
/// does not implement their dtype, or because it is not deterministic and LibTorch's deterministic
/// algorithms are required.
void check_restrictions(const std::string& name, const std::vector<c10::IValue>& arguments);

/// Throws c10::NotImplementedError, because the device cannot run `operation`, such as "aten::gru",
/// although a GPU can. `dsv3 plugins check` looks for the start of the message.
[[noreturn]] void reject_untestable(const std::string& operation);

}  // namespace fake_cuda
