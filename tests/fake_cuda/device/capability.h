// Compute capability of the fake GPU.
#pragma once

namespace fake_cuda {

struct Capability {
  int major = 9, minor = 0;
};

/// Returns FAKE_CUDA_CAPABILITY, such as "8.6"; by default 9.0, as for an H100. The fake driver
/// reports the same value.
Capability capability();

/// Whether the GPU has flash kernels and bf16 units: Ampere (8.0) or newer.
inline bool is_ampere_or_newer() {
  return capability().major >= 8;
}

}  // namespace fake_cuda
