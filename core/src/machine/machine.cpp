#include "machine/machine.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>

#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

namespace dsv3 {
namespace {

/// Minimum compute capability, as 10 * major + minor, for LibTorch built with CUDA 13 or newer.
constexpr int kCuda13Capability = 75;

/// Version of LibTorch's CUDA runtime, e.g. 13000 for 13.0; 0 = unknown.
int libtorch_cuda_version() {
  try {
    return int(at::detail::getCUDAHooks().versionCUDART());
  } catch (const c10::Error&) {
    return 0;
  }
}

/// Loads LibTorch's CUDA library if there is a GPU. Returns "" if LibTorch can use the GPU,
/// otherwise the reason and, after "; ", how to fix it.
std::string load_cuda() {
  const GpuDriver& driver = gpu_driver();
  if (!driver.problem.empty()) return driver.problem;
  const std::string gpu = "GPU '" + driver.gpus.front().name + "'";
  if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL))
    return gpu + " cannot be used, because LibTorch's CUDA libraries do not load: " + dlerror() +
           "; install them with `tools/dev setup --cuda`";
  const bool usable = at::globalContext().hasCUDA();
  const int version = libtorch_cuda_version();
  if (driver.cuda_version > 0 && driver.cuda_version / 1000 < version / 1000)
    return gpu + " cannot be used: its driver supports CUDA " +
           cuda_version_text(driver.cuda_version) + ", but LibTorch needs " +
           cuda_version_text(version) + "; update the NVIDIA driver";
  if (!usable)
    return gpu + " cannot be used: LibTorch's CUDA library finds no GPU; check nvidia-smi";
  return "";
}

/// The result of load_cuda(), which runs only once per process.
const std::string& gpu_problem() {
  static const std::string problem = load_cuda();
  return problem;
}

int64_t threads_of_rank(int64_t local_ranks) {
  const char* of_task = std::getenv("SLURM_CPUS_PER_TASK");
  if (std::getenv("OMP_NUM_THREADS") || local_ranks == 1) return at::get_num_threads();
  if (of_task && std::atoi(of_task) > 0) return std::atoi(of_task);
  return std::max<int64_t>(at::get_num_threads() / local_ranks, 1);
}

/// Whether the scheduler shows each rank of a machine its own GPU only, as Slurm does with
/// --gpus-per-task. The launchers that set LOCAL_RANK do not.
bool sees_own_gpu_only() {
  return gpu_driver().gpus.size() == 1 && !std::getenv("LOCAL_RANK");
}

int local_rank() {
  const char* text = std::getenv("LOCAL_RANK");
  if (!text) return sees_own_gpu_only() ? 0 : int(rank_context(environment()).local_rank);
  if (!*text) return 0;
  int rank = -1;
  const char* end = text + std::strlen(text);
  if (std::from_chars(text, end, rank).ptr != end || rank < 0)
    throw Error("the environment variable LOCAL_RANK is '" + std::string(text) +
                    "', not a GPU index; unset it, or set it to 0 for the first GPU",
                ExitCode::usage);
  return rank;
}

/// Throws the same error on all ranks of this machine if some of them have no GPU.
void require_gpus() {
  const int64_t ranks = rank_context(environment()).local_world;
  const auto gpus = int64_t(gpu_driver().gpus.size());
  if (ranks <= gpus || sees_own_gpu_only()) return;
  throw Error(std::to_string(ranks) + " ranks on one machine need as many GPUs, but " +
                  std::to_string(gpus) + (gpus == 1 ? " is" : " are") +
                  " visible; pass --num_gpus " + std::to_string(gpus) +
                  ", check CUDA_VISIBLE_DEVICES, or set train.device=cpu",
              ExitCode::data);
}

/// Returns the GPU for this process. Throws if it does not exist or LibTorch does not support it.
at::Device local_gpu(const DeviceAdvice& advice) {
  require_gpus();
  const int rank = local_rank();
  const std::vector<Gpu>& gpus = gpu_driver().gpus;
  if (rank >= int(gpus.size()))
    throw Error("local rank " + std::to_string(rank) + " needs its own GPU, but only " +
                    std::to_string(gpus.size()) +
                    " GPU(s) are visible; start at most one rank per GPU, or check "
                    "CUDA_VISIBLE_DEVICES",
                ExitCode::data);
  const Gpu& gpu = gpus[size_t(rank)];
  if (libtorch_cuda_version() >= 13000 && gpu.major * 10 + gpu.minor < kCuda13Capability)
    throw Error("GPU '" + gpu.name + "' cannot be used: its compute capability is " +
                    gpu.capability() + ", but LibTorch for CUDA 13 needs 7.5 (Turing) or newer; " +
                    advice.alternative,
                ExitCode::data);
  return at::Device(at::kCUDA, c10::DeviceIndex(rank));
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

at::Device device_of(const TrainOptions& train, const DeviceAdvice& advice) {
  if (train.device == "cpu") return at::kCPU;
  const bool any = !gpu_driver().gpus.empty();
  if (train.device == "auto" && !any) return at::kCPU;
  if (const std::string& problem = gpu_problem(); !problem.empty())
    throw Error(
        (any ? "" : advice.setting + " is cuda, but ") + problem + ", or " + advice.alternative,
        ExitCode::data);
  const at::Device device = local_gpu(advice);
  // Make this GPU the default for code in LibTorch and plugins that does not specify a device
  // index.
  if (device.index() > 0) c10::impl::VirtualGuardImpl(at::kCUDA).setDevice(device);
  return device;
}

const Gpu* gpu_of(at::Device device) {
  const std::vector<Gpu>& gpus = gpu_driver().gpus;
  const size_t index = size_t(device.has_index() ? device.index() : 0);
  return device.is_cuda() && index < gpus.size() ? &gpus[index] : nullptr;
}

void choose_determinism(const TrainOptions& train, at::Device device) {
  if (!train.deterministic || !device.is_cuda()) return;
  // cuBLAS reads this variable when it is initialised. If the user has set it to a value that is
  // not deterministic, LibTorch throws.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  // Filling tensors only helps to find reads of uninitialised memory, and costs an additional pass
  // over each new tensor.
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  context.setSDPUseCuDNN(false);  // cuDNN's attention has no deterministic backward pass
}

void warn_about_unused_gpu(const TrainOptions& train) {
  const GpuDriver& driver = gpu_driver();
  if (train.device == "auto" && (driver.failed || driver.hidden))
    log::warning("using the CPU, because " + driver.problem);
}

bool is_ampere_or_newer(at::Device device) {
  const Gpu* gpu = gpu_of(device);
  return gpu && gpu->major >= 8;
}

/// Whether oneDNN uses AMX: the CPU has it, and the variable that limits oneDNN does not exclude
/// it.
bool has_amx() {
  const char* const variable = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string_view limit = variable ? variable : "";
  const bool excluded = limit.starts_with("AVX") && limit.find("AMX") == limit.npos;
  return !excluded && __builtin_cpu_supports("amx-bf16") != 0;
}

const char* automatic_precision(at::Device device) {
  const bool fast = device.is_cuda() ? is_ampere_or_newer(device) : has_amx();
  return fast ? "bf16" : "fp32";
}

at::ScalarType compute_dtype(const TrainOptions& train) {
  return train.precision == "bf16" ? at::kBFloat16 : at::kFloat;
}

bool trains_on_gpu_in_bf16(const TrainOptions& train) {
  const bool gpu = train.device == "cuda" || (train.device == "auto" && !gpu_driver().gpus.empty());
  return gpu && (train.precision == "bf16" ||
                 (train.precision == "auto" && is_ampere_or_newer(at::kCUDA)));
}

double peak_flops(at::Device device) {
  const Gpu* gpu = gpu_of(device);
  return gpu ? peak_flops_of(gpu->name) : 0;
}

int64_t peak_memory_bytes(at::Device device) {
  if (device.is_cuda()) {
    using c10::CachingAllocator::StatType;
    const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(device.index());
    return stats.allocated_bytes[size_t(StatType::AGGREGATE)].peak;
  }
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

void resolve_machine(Experiment& experiment, int64_t local_ranks) {
  TrainOptions machine;
  const GpuDriver& driver = gpu_driver();
  warn_about_unused_gpu(experiment.train);
  // device_of checks whether LibTorch can use the GPU. If not, it throws rather than fall back to
  // the CPU.
  const bool gpu = experiment.train.device == "cuda" ||
                   (experiment.train.device == "auto" && !driver.gpus.empty());
  machine.device = gpu ? "cuda" : "cpu";
  machine.precision = automatic_precision(gpu ? at::kCUDA : at::kCPU);
  machine.threads = threads_of_rank(local_ranks);
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
