// A fake CUDA driver, libcuda.so.1, with the functions that list the GPUs. Environment variables:
//   FAKE_CUDA_COUNT       number of GPUs, 1 by default
//   FAKE_CUDA_NAME        GPU name, "NVIDIA H100 80GB HBM3" by default
//   FAKE_CUDA_MEMORY      bytes of device memory, 85520809984 by default
//   FAKE_CUDA_CAPABILITY  compute capability, 9.0 by default
//   FAKE_CUDA_VERSION     the driver's CUDA version, 13000 by default
//   FAKE_CUDA_ERROR       result of cuInit, such as 100 for "no device"
//   CUDA_VISIBLE_DEVICES  indices of the visible GPUs, as for the real driver; empty = none
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "visible.h"

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kNotInitialized = 3, kNoDevice = 100,
              kInvalidDevice = 101;
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;

bool initialized = false;

std::string setting(const char* name, const char* standard) {
  const char* value = std::getenv(name);
  return value ? value : standard;
}

int number(const char* name, const char* standard) {
  return std::atoi(setting(name, standard).c_str());
}

int check(int device) {
  if (!initialized) return kNotInitialized;
  return device >= 0 && device < int(visible_gpus().size()) ? kSuccess : kInvalidDevice;
}

struct ErrorText {
  int error;
  const char *name, *text;
};

/// The driver's texts for an error; null = unknown.
const ErrorText* text_of(int error) {
  static constexpr ErrorText kTexts[]{
      {kSuccess, "CUDA_SUCCESS", "no error"},
      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
      {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
      {kNoDevice, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
      {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
      {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
       "system has unsupported display driver / cuda driver combination"}};
  for (const ErrorText& text : kTexts)
    if (text.error == error) return &text;
  return nullptr;
}

}  // namespace

extern "C" {

int cuInit(unsigned flags) {
  if (flags != 0) return kInvalidValue;
  const int error = number("FAKE_CUDA_ERROR", "0");
  if (error != 0) return error;
  if (visible_gpus().empty()) return kNoDevice;
  initialized = true;
  return kSuccess;
}

int cuDriverGetVersion(int* version) {
  *version = number("FAKE_CUDA_VERSION", "13000");
  return kSuccess;
}

int cuDeviceGetCount(int* count) {
  if (!initialized) return kNotInitialized;
  *count = int(visible_gpus().size());
  return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
  const int error = check(ordinal);
  if (error == kSuccess) *device = ordinal;
  return error;
}

int cuDeviceGetName(char* name, int length, int device) {
  const int error = check(device);
  if (error == kSuccess)
    std::snprintf(name, size_t(length), "%s",
                  setting("FAKE_CUDA_NAME", "NVIDIA H100 80GB HBM3").c_str());
  return error;
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) {
  const int error = check(device);
  if (error == kSuccess)
    *bytes = std::strtoull(setting("FAKE_CUDA_MEMORY", "85520809984").c_str(), nullptr, 10);
  return error;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int error = check(device);
  if (error != kSuccess) return error;
  int major = 9, minor = 0;
  std::sscanf(setting("FAKE_CUDA_CAPABILITY", "9.0").c_str(), "%d.%d", &major, &minor);
  if (attribute != kCapabilityMajor && attribute != kCapabilityMinor) return kInvalidValue;
  *value = attribute == kCapabilityMajor ? major : minor;
  return kSuccess;
}

int cuGetErrorName(int error, const char** name) {
  const ErrorText* found = text_of(error);
  *name = found ? found->name : nullptr;
  return found ? kSuccess : kInvalidValue;
}

int cuGetErrorString(int error, const char** text) {
  const ErrorText* found = text_of(error);
  *text = found ? found->text : nullptr;
  return found ? kSuccess : kInvalidValue;
}

}  // extern "C"
