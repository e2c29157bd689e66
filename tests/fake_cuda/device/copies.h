// Copies between host and device. A copy from or to pinned memory with non_blocking=true is
// asynchronous: the host continues, and the device performs the copy later. The fake device assumes
// the timing that is worst for the program:
// - A copy to the host is performed when the host next waits for the device. Until then, its
//   destination contains 0xff bytes.
// - If the program changes the source of a copy to the device before it next waits for the device,
//   that wait throws an error, because the device may not have read the source yet.
#pragma once

#include <cstdint>
#include <limits>

#include <ATen/core/Tensor.h>

namespace fake_cuda {

/// Returns the number that the next asynchronous copy will get.
int64_t next_copy();

/// Completes the asynchronous copies with numbers below `ticket`. Throws c10::Error if the host has
/// changed the source of one of them.
void complete_copies(int64_t ticket = std::numeric_limits<int64_t>::max());

}  // namespace fake_cuda
