#include "machine/nvml.h"

#include <array>

#include "machine/driver_library.h"

namespace dsv3 {
namespace {

// From NVIDIA's NVML reference, copied so that the build does not require nvml.h.
constexpr int kSuccess = 0;

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

std::string Nvml::driver_version() const {
  const DriverFunction<char*, unsigned> get_version(library_, "nvmlSystemGetDriverVersion");
  std::array<char, 96> text{};
  if (code_ != kSuccess || get_version(text.data(), unsigned(text.size())) != kSuccess) return "";
  return text.data();
}

}  // namespace dsv3
