#include "machine/nvml.h"

#include <array>

#include "machine/driver_library.h"

namespace dsv3 {
namespace {

// From NVIDIA's NVML reference, copied so that the build does not require nvml.h.
constexpr int kSuccess = 0;
using Device = void*;
struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};

GpuUsage usage_of(void* library, Device device) {
  const DriverFunction<Device, Memory*> get_memory(library, "nvmlDeviceGetMemoryInfo");
  const DriverFunction<Device, Utilization*> get_utilization(library,
                                                             "nvmlDeviceGetUtilizationRates");
  const DriverFunction<Device, unsigned*> get_power(library, "nvmlDeviceGetPowerUsage"),
      get_power_limit(library, "nvmlDeviceGetEnforcedPowerLimit");
  const auto watts = [](unsigned milliwatts) { return double(milliwatts) / 1000; };
  GpuUsage usage;
  Memory memory{};
  if (get_memory(device, &memory) == kSuccess) {
    usage.memory = double(memory.used);
    usage.memory_total = double(memory.total);
  }
  Utilization utilization{};
  if (get_utilization(device, &utilization) == kSuccess) usage.utilization = utilization.gpu;
  unsigned power = 0, limit = 0;
  if (get_power(device, &power) == kSuccess) usage.power = watts(power);
  if (get_power_limit(device, &limit) == kSuccess) usage.power_limit = watts(limit);
  return usage;
}

}  // namespace

Nvml::Nvml() {
  std::string missing;
  library_ = open_driver_library("libnvidia-ml.so.1", missing);
  code_ = DriverFunction<>(library_, "nvmlInit_v2")();
}

Nvml::~Nvml() {
  if (code_ == kSuccess) DriverFunction<>(library_, "nvmlShutdown")();
  if (library_) dlclose(library_);
}

std::string Nvml::problem() const {
  if (!library_ || code_ == kSuccess) return "";
  return "nvmlInit failed with error " + std::to_string(code_);
}

std::string Nvml::driver_version() const {
  const DriverFunction<char*, unsigned> get_version(library_, "nvmlSystemGetDriverVersion");
  std::array<char, 96> text{};
  if (code_ != kSuccess || get_version(text.data(), unsigned(text.size())) != kSuccess) return "";
  return text.data();
}

std::vector<GpuUsage> Nvml::gpus() const {
  const DriverFunction<unsigned*> get_count(library_, "nvmlDeviceGetCount_v2");
  const DriverFunction<unsigned, Device*> get_device(library_, "nvmlDeviceGetHandleByIndex_v2");
  unsigned count = 0;
  if (code_ != kSuccess || get_count(&count) != kSuccess) return {};
  std::vector<GpuUsage> gpus(count);
  for (unsigned i = 0; i < count; ++i) {
    Device device = nullptr;
    if (get_device(i, &device) == kSuccess) gpus[i] = usage_of(library_, device);
  }
  return gpus;
}

}  // namespace dsv3
