// The rules of LibTorch's index operators for devices and waits, which differ from those of other
// operators.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

/// Whether the operator `name` is `index`, whose result has new memory.
bool is_index(const std::string& name);

/// Whether the operator `name` is `index_put_`.
bool is_index_put(const std::string& name);

/// Throws c10::Error if an index operator rejects the devices of its self, index and value tensors.
/// Does nothing for other operators.
void check_index_devices(const std::string& name, const std::vector<c10::IValue>& arguments);

/// Counts the waits of an index operator: for the size of a mask, and for values or indices that
/// LibTorch copies to another device. Does nothing for other operators.
void count_index_waits(const std::string& name, const std::vector<c10::IValue>& arguments);

}  // namespace fake_cuda
