// Copies between host and device. A copy from or to pinned memory with non_blocking=true is
// asynchronous: the host continues, and the device copies at some later time. The fake device
// assumes the worst time for the program:
// - Copies to the host arrive at the host's next wait. Until then the destination holds 0xff bytes.
// - A program that changes the source of a copy to the device before its next wait gets an error
//   there, since the device may not have read it.
#pragma once

#include <cstdint>
#include <limits>

#include <ATen/core/Tensor.h>

namespace fake_cuda {

/// The number of the next asynchronous copy.
int64_t next_copy();

/// Completes the asynchronous copies with numbers below `ticket`. Throws c10::Error if the host
/// changed the source of one.
void complete_copies(int64_t ticket = std::numeric_limits<int64_t>::max());

}  // namespace fake_cuda
