// GPUs as the NVIDIA driver reports them, before any CUDA library is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dsv3 {

struct Gpu {
  std::string name;          ///< such as "NVIDIA H100 80GB HBM3"
  int64_t memory_bytes = 0;  ///< total, including what other processes use
  int major = 0, minor = 0;  ///< compute capability
  std::string capability() const { return std::to_string(major) + "." + std::to_string(minor); }
};

/// The installed NVIDIA driver, through its own library libcuda.so.1. Its interface is stable over
/// all CUDA versions, works under WSL2 and obeys CUDA_VISIBLE_DEVICES.
struct GpuDriver {
  bool installed = false;  ///< libcuda.so.1 was found
  bool failed = false;     ///< it is installed, but does not start
  int cuda_version = 0;    ///< newest CUDA that the driver supports, such as 13000; 0 = unknown
  std::vector<Gpu> gpus;   ///< the visible GPUs, in CUDA's order
  /// Why there is no GPU, then "; " and what to do about it. Empty if there is one.
  std::string problem;
};

/// Asks the driver once per process.
const GpuDriver& gpu_driver();

/// "13.0" for 13000.
std::string cuda_version_text(int version);

}  // namespace dsv3
