// GPUs as the NVIDIA driver reports them, before any CUDA library is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dsv3 {

struct Gpu {
  std::string name;          ///< such as "NVIDIA H100 80GB HBM3"
  int64_t memory_bytes = 0;  ///< total memory, including memory that other processes use
  int major = 0, minor = 0;  ///< compute capability
  std::string capability() const { return std::to_string(major) + "." + std::to_string(minor); }
};

/// The installed NVIDIA driver, queried through libcuda.so.1. This library has the same interface
/// for all CUDA versions, works under WSL2 and respects CUDA_VISIBLE_DEVICES.
struct GpuDriver {
  bool installed = false;  ///< libcuda.so.1 was found
  bool failed = false;     ///< libcuda.so.1 was found, but a call to it failed
  bool hidden = false;     ///< CUDA_VISIBLE_DEVICES names GPUs, but the driver finds none of them
  int cuda_version = 0;    ///< newest supported CUDA version, e.g. 13000 for 13.0; 0 = unknown
  std::vector<Gpu> gpus;   ///< the visible GPUs, in CUDA's order
  /// The reason why no GPU was found and, after "; ", how to fix it. Empty if there is a GPU.
  std::string problem;
};

/// Returns the driver's properties and GPUs, which it queries only once per process.
const GpuDriver& gpu_driver();

/// "13.0" for 13000.
std::string cuda_version_text(int version);

}  // namespace dsv3
