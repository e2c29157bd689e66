// A fake NVML, libnvidia-ml.so.1, in which GPU i uses 10 * (i + 1) percent of everything. As with
// the real one, CUDA_VISIBLE_DEVICES hides no GPU. Environment variables:
//   FAKE_CUDA_COUNT       number of GPUs, 1 by default
//   FAKE_NVML_ERROR       result of nvmlInit, such as 9 for "driver not loaded"
//   FAKE_NVML_MIG         if set, the GPUs are in MIG mode and report no utilization
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kSuccess = 0, kUninitialized = 1, kInvalidArgument = 2, kNotSupported = 3;
constexpr unsigned long long kMemory = 80'000'000'000;  // bytes
constexpr unsigned kPowerLimit = 700'000;               // milliwatts

int users = 0;  // calls of nvmlInit without one of nvmlShutdown

int number(const char* name, int standard) {
  const char* value = std::getenv(name);
  return value ? std::atoi(value) : standard;
}

/// The percentage that a GPU uses. Handles are numbers from 1.
unsigned percent(void* device) {
  return unsigned(reinterpret_cast<uintptr_t>(device)) * 10;
}

}  // namespace

extern "C" {

struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};

int nvmlInit_v2() {
  const int error = number("FAKE_NVML_ERROR", kSuccess);
  if (error == kSuccess) ++users;
  return error;
}

int nvmlShutdown() {
  if (users == 0) return kUninitialized;
  --users;
  return kSuccess;
}

int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  if (users == 0) return kUninitialized;
  std::snprintf(text, length, "580.82.07");
  return kSuccess;
}

int nvmlDeviceGetCount_v2(unsigned* count) {
  if (users == 0) return kUninitialized;
  *count = unsigned(number("FAKE_CUDA_COUNT", 1));
  return kSuccess;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (users == 0) return kUninitialized;
  if (index >= unsigned(number("FAKE_CUDA_COUNT", 1))) return kInvalidArgument;
  *device = reinterpret_cast<void*>(uintptr_t(index) + 1);
  return kSuccess;
}

int nvmlDeviceGetMemoryInfo(void* device, Memory* memory) {
  const unsigned long long used = kMemory / 100 * percent(device);
  *memory = {kMemory, kMemory - used, used};
  return kSuccess;
}

int nvmlDeviceGetUtilizationRates(void* device, Utilization* utilization) {
  if (std::getenv("FAKE_NVML_MIG")) return kNotSupported;
  *utilization = {percent(device), 0};
  return kSuccess;
}

int nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) {
  *milliwatts = kPowerLimit / 100 * percent(device);
  return kSuccess;
}

int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned* milliwatts) {
  *milliwatts = kPowerLimit;
  return kSuccess;
}

}  // extern "C"
