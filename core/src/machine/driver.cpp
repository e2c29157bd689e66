#include "machine/driver.h"

#include <array>
#include <cctype>
#include <cstdlib>

#include "machine/driver_library.h"

namespace dsv3 {
namespace {

// Constants from NVIDIA's CUDA Driver API reference, copied so that the build does not require
// cuda.h.
constexpr int kSuccess = 0, kStubLibrary = 34, kNoDevice = 100;
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;

std::string error_text(void* library, int code) {
  const DriverFunction<int, const char**> error_string(library, "cuGetErrorString");
  const char* text = nullptr;
  error_string(code, &text);
  return "error " + std::to_string(code) + (text ? std::string(": ") + text : "");
}

/// CUDA_VISIBLE_DEVICES; null if it is not set.
const char* visible_devices() {
  return std::getenv("CUDA_VISIBLE_DEVICES");
}

/// Whether CUDA_VISIBLE_DEVICES names GPUs, by index or by UUID. "", "-1" and "NoDevFiles" hide all
/// GPUs on purpose.
bool names_gpus(const char* visible) {
  const std::string text = visible ? visible : "";
  return !text.empty() && (std::isdigit(static_cast<unsigned char>(text[0])) ||
                           text.starts_with("GPU-") || text.starts_with("MIG-"));
}

std::string no_gpu_text() {
  const char* visible = visible_devices();
  return "the NVIDIA driver reports no GPU" +
         (visible ? " with CUDA_VISIBLE_DEVICES='" + std::string(visible) + "'" : std::string()) +
         "; check nvidia-smi" + (visible ? " and CUDA_VISIBLE_DEVICES" : "");
}

GpuDriver ask() {
  GpuDriver driver;
  std::string missing;
  void* library = open_driver_library("libcuda.so.1", missing);
  if (!library) {
    driver.problem = "no NVIDIA driver was found (" + missing +
                     "); install the driver so that nvidia-smi lists the GPU";
    return driver;
  }
  driver.installed = true;
  const DriverFunction<unsigned> init(library, "cuInit");
  const DriverFunction<int*> version(library, "cuDriverGetVersion"),
      count(library, "cuDeviceGetCount");
  const DriverFunction<int*, int> get(library, "cuDeviceGet");
  const DriverFunction<char*, int, int> name(library, "cuDeviceGetName");
  const DriverFunction<size_t*, int> memory(library, "cuDeviceTotalMem_v2");
  const DriverFunction<int*, int, int> attribute(library, "cuDeviceGetAttribute");
  version(&driver.cuda_version);
  int gpus = 0, code = init(0);
  if (code == kSuccess) code = count(&gpus);
  if (code == kNoDevice || code == kStubLibrary || (code == kSuccess && gpus == 0)) {
    driver.problem = no_gpu_text();
    driver.hidden = names_gpus(visible_devices());
    return driver;
  }
  for (int i = 0; i < gpus && code == kSuccess; ++i) {
    int device = 0;
    std::array<char, 256> text{};
    size_t bytes = 0;
    Gpu gpu;
    code = get(&device, i);
    if (code == kSuccess) code = name(text.data(), int(text.size()) - 1, device);
    if (code == kSuccess) code = memory(&bytes, device);
    if (code == kSuccess) code = attribute(&gpu.major, kCapabilityMajor, device);
    if (code == kSuccess) code = attribute(&gpu.minor, kCapabilityMinor, device);
    gpu.name = text.data();
    gpu.memory_bytes = int64_t(bytes);
    driver.gpus.push_back(gpu);
  }
  if (code != kSuccess) {
    driver.failed = true;
    driver.gpus.clear();
    driver.problem = "the NVIDIA driver does not work (" + error_text(library, code) +
                     "); check nvidia-smi, and restart the machine if the driver has been updated";
  }
  return driver;
}

}  // namespace

/// WSL2 mounts the libraries in a folder that the dynamic loader may not search in a container.
void* open_driver_library(const std::string& name, std::string& problem) {
  if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL)) return library;
  problem = dlerror();
  return dlopen(("/usr/lib/wsl/lib/" + name).c_str(), RTLD_NOW | RTLD_GLOBAL);
}

const GpuDriver& gpu_driver() {
  static const GpuDriver driver = ask();
  return driver;
}

std::string cuda_version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace dsv3
