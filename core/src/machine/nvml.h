// NVIDIA's management library (NVML), which reports the state of the driver.
#pragma once

#include <string>

namespace dsv3 {

/// NVML, queried through libnvidia-ml.so.1. It may be missing.
class Nvml {
 public:
  Nvml();
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  /// Such as "580.82.07"; "" = unknown.
  std::string driver_version() const;

 private:
  void* library_ = nullptr;
  int code_ = 0;  // result of nvmlInit
};

}  // namespace dsv3
