// The GPUs of this machine as NVIDIA's management library (NVML) reports them.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace dsv3 {

/// What the programs of this machine use of one GPU. GPUs do not report everything: one in MIG mode
/// has no utilization.
struct GpuUsage {
  std::optional<double> memory, memory_total;  ///< bytes
  std::optional<double> utilization;           ///< percentage of the time in which a kernel ran
  std::optional<double> power, power_limit;    ///< watts
};

/// NVML, queried through libnvidia-ml.so.1. Without this library or a driver, it has no GPUs.
class Nvml {
 public:
  Nvml();
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  /// Why NVML cannot be used although it is installed; "" if it can, or is not installed.
  std::string problem() const;
  /// Such as "580.82.07"; "" = unknown.
  std::string driver_version() const;
  /// All GPUs of the machine, also those that CUDA_VISIBLE_DEVICES hides, in NVML's order.
  std::vector<GpuUsage> gpus() const;

 private:
  void* library_ = nullptr;
  int code_ = 0;  // result of nvmlInit
};

}  // namespace dsv3
