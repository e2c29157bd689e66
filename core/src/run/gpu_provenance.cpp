#include "run/gpu_provenance.h"

#include <dlfcn.h>
#include <regex>

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <dsv3/support/fs.h>

#include "machine/machine.h"
#include "machine/nvml.h"

namespace dsv3 {
namespace {

/// NVML also works under WSL2, where /proc has no driver.
Json driver_version() {
  if (const std::string version = Nvml().driver_version(); !version.empty()) return version;
  try {
    return driver_version_in(fs::read("/proc/driver/nvidia/version"));
  } catch (const std::exception&) {
    return nullptr;
  }
}

/// "13.0" for 13000, null for 0.
Json cuda_version(int64_t version) {
  return version > 0 ? Json(cuda_version_text(int(version))) : Json();
}

/// A version of the form 10000 * major + 100 * minor + patch, which cuDNN 9 and NCCL use.
Json decimal_version(int64_t version) {
  if (version <= 0) return nullptr;
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

/// Calls a function in LibTorch's CUDA hooks. Returns 0 if LibTorch's CUDA library does not
/// implement it.
template <class Hook>
int64_t ask(Hook hook) {
  try {
    return (at::detail::getCUDAHooks().*hook)();
  } catch (const c10::Error&) {
    return 0;
  }
}

/// NCCL's version, if LibTorch's CUDA library has loaded it.
Json nccl_version() {
  const auto function = reinterpret_cast<int (*)(int*)>(dlsym(RTLD_DEFAULT, "ncclGetVersion"));
  int version = 0;
  return function && function(&version) == 0 ? decimal_version(version) : Json();
}

bool uses_tf32(at::Float32Op operation) {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, operation) ==
         at::Float32Precision::TF32;
}

}  // namespace

Json driver_version_in(const std::string& text) {
  static const std::regex pattern(R"((\d{3,}\.\d+(\.\d+)?))");
  std::smatch match;
  return std::regex_search(text, match, pattern) ? Json(match[1].str()) : Json();
}

Json gpu_provenance(at::Device device) {
  using Hooks = at::CUDAHooksInterface;
  const Gpu* gpu = gpu_of(device);
  return {{"name", gpu ? Json(gpu->name) : Json()},
          {"index", int(device.index())},
          {"memory_bytes", gpu ? Json(gpu->memory_bytes) : Json()},
          {"capability", gpu ? Json(gpu->capability()) : Json()},
          {"driver", driver_version()},
          {"cuda",
           {{"driver", cuda_version(gpu_driver().cuda_version)},
            {"runtime", cuda_version(ask(&Hooks::versionCUDART))}}},
          {"cudnn", decimal_version(ask(&Hooks::versionRuntimeCuDNN))},
          {"nccl", nccl_version()},
          {"tf32",
           {{"matmul", uses_tf32(at::Float32Op::MATMUL)},
            {"convolution", uses_tf32(at::Float32Op::CONV)}}},
          {"deterministic", at::globalContext().deterministicAlgorithms()}};
}

}  // namespace dsv3
