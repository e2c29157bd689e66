#include "train/machine.h"

#include <array>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

#include <ATen/Parallel.h>

#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

/// "NVIDIA H100 80GB HBM3" of the first GPU, from the driver's files.
std::string gpu_name() {
  std::error_code missing;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", missing)) {
    std::ifstream file(gpu.path() / "information");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("Model:")) return line.substr(line.find_first_not_of(" \t", 6));
  }
  return {};
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
        "train.device is cuda, but no usable NVIDIA GPU was found: check nvidia-smi and that "
        "LibTorch's "
        "CUDA libraries are installed, or set train.device=cpu",
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

Experiment resolve_machine(const ExperimentRequest& request, Plugins& plugins) {
  PluginCatalog catalog(plugins);
  Experiment experiment = load_experiment(request, catalog);
  ExperimentRequest concrete = request;
  const at::Device device = device_of(experiment.train);
  if (experiment.train.device == "auto")
    concrete.forced.push_back(std::string("train.device=") + (device.is_cuda() ? "cuda" : "cpu"));
  if (experiment.train.precision == "auto")
    concrete.forced.push_back(std::string("train.precision=") + automatic_precision(device));
  if (experiment.train.threads == 0)
    concrete.forced.push_back("train.threads=" + std::to_string(at::get_num_threads()));
  if (concrete.forced.size() == request.forced.size()) return experiment;
  concrete.forced_label = "this machine";
  return load_experiment(concrete, catalog);
}

int64_t total_steps(const Experiment& experiment) {
  const TrainOptions& train = experiment.train;
  if (train.steps > 0) return train.steps;
  const int64_t tokens_a_step = train.batch * train.sequence;
  return (train.tokens + tokens_a_step - 1) / tokens_a_step;
}

}  // namespace dsv3
