#include "machine/machine.h"

#include <array>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

#include <ATen/Parallel.h>

#include <dsv3/runtime/machine.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

/// The name of the first GPU, such as "NVIDIA H100 80GB HBM3", from the driver's files.
std::string gpu_name() {
  std::error_code missing;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", missing)) {
    std::ifstream file(gpu.path() / "information");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("Model:")) return line.substr(line.find_first_not_of(" \t", 6));
  }
  return {};
}

template <class T, class V>
void assign(Experiment& experiment, const char* key, T& field, const V& value,
            const std::string& label) {
  field = value;
  experiment.resolved.set(std::string("train.") + key, value, {label});
}

/// Replaces `auto` in the fields of `train` with the values in `chosen`.
void assign_automatic(Experiment& experiment, const TrainOptions& chosen) {
  constexpr const char* kLabel = "this machine";
  TrainOptions& train = experiment.train;
  if (train.device == "auto") assign(experiment, "device", train.device, chosen.device, kLabel);
  if (train.precision == "auto")
    assign(experiment, "precision", train.precision, chosen.precision, kLabel);
  if (!train.threads && chosen.threads)
    assign(experiment, "threads", train.threads, *chosen.threads, kLabel);
}

}  // namespace

bool load_cuda() {
  static const bool loaded = [] {
    if (access("/dev/nvidiactl", R_OK) != 0) return false;
    if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) return false;
    return at::globalContext().hasCUDA();
  }();
  return loaded;
}

at::Device device_of(const TrainOptions& train) {
  if (train.device == "cpu") return at::kCPU;
  if (load_cuda()) return at::Device(at::kCUDA, 0);
  if (train.device == "cuda")
    throw Error(
        "train.device is cuda, but no usable NVIDIA GPU was found; check nvidia-smi and that "
        "LibTorch's CUDA libraries are installed, or set train.device=cpu",
        ExitCode::usage);
  return at::kCPU;
}

const char* automatic_precision(at::Device device) {
  return device.is_cuda() || __builtin_cpu_supports("amx-bf16") ? "bf16" : "fp32";
}

at::ScalarType compute_dtype(const TrainOptions& train) {
  return train.precision == "bf16" ? at::kBFloat16 : at::kFloat;
}

double peak_flops(at::Device device) {
  if (!device.is_cuda()) return 0;
  struct Peak {
    const char* name;
    double flops;
  };
  constexpr std::array kPeaks{Peak{"H100 PCIe", 756e12}, Peak{"H100", 989e12},
                              Peak{"H200", 989e12},      Peak{"H800", 989e12},
                              Peak{"A100", 312e12},      Peak{"B200", 2250e12}};
  const std::string name = gpu_name();
  for (const Peak& peak : kPeaks)
    if (name.find(peak.name) != std::string::npos) return peak.flops;
  return 0;
}

int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

void resolve_machine(Experiment& experiment) {
  TrainOptions machine;
  const bool asks_for_gpu = experiment.train.device == "cuda";  // preflight checks that one exists
  const at::Device device = asks_for_gpu ? at::Device(at::kCUDA, 0) : device_of(experiment.train);
  machine.device = device.is_cuda() ? "cuda" : "cpu";
  machine.precision = automatic_precision(device);
  machine.threads = at::get_num_threads();
  assign_automatic(experiment, machine);
}

void resolve_machine_as(Experiment& experiment, const Experiment& run) {
  assign_automatic(experiment, run.train);
}

void set_machine(Experiment& experiment, const std::string& device, const std::string& precision,
                 const std::string& label) {
  if (!device.empty()) assign(experiment, "device", experiment.train.device, device, label);
  if (!precision.empty())
    assign(experiment, "precision", experiment.train.precision, precision, label);
}

}  // namespace dsv3
