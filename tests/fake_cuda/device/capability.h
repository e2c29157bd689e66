// The compute capability of the fake GPU.
#pragma once

namespace fake_cuda {

struct Capability {
  int major = 9, minor = 0;
};

/// FAKE_CUDA_CAPABILITY, such as "8.6"; by default that of an H100. The fake driver reports the
/// same.
Capability capability();

}  // namespace fake_cuda
