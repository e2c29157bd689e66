// Compute capability of the fake GPU.
#pragma once

namespace fake_cuda {

struct Capability {
  int major = 9, minor = 0;
};

/// Returns FAKE_CUDA_CAPABILITY, such as "8.6"; by default 9.0, as for an H100. The fake driver
/// reports the same value.
Capability capability();

}  // namespace fake_cuda
