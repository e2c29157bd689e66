// Properties of this machine: device, precision, peak rates, memory.
#pragma once

#include <string>

#include <ATen/ATen.h>

#include <dsv3/runtime/experiment.h>

#include "machine/driver.h"

namespace dsv3 {

/// Words for the errors of device_of().
struct DeviceAdvice {
  std::string setting = "train.device";              ///< the setting that selects the device
  std::string alternative = "set train.device=cpu";  ///< what to do without a GPU
};

/// The device selected by `train.device`. The environment variable LOCAL_RANK, or the local rank
/// that Slurm or MPI have set, selects the GPU; the default is GPU 0. `auto` selects the CPU only
/// if the driver reports no GPU. Throws a dsv3::Error (ExitCode::data) if the selected GPU cannot
/// be used. The first call that selects a GPU loads LibTorch's CUDA library. No code may query
/// LibTorch about CUDA before that call, because LibTorch caches its first answer.
at::Device device_of(const TrainOptions& train, const DeviceAdvice& advice = {});

/// Warns if `device: auto` selects the CPU although the machine seems to have a GPU: its driver
/// does not work, or CUDA_VISIBLE_DEVICES names only GPUs that do not exist.
void warn_about_unused_gpu(const TrainOptions& train);

/// The driver's entry for a CUDA device. Returns nullptr if the driver does not report the device,
/// or if `device` is a CPU.
const Gpu* gpu_of(at::Device device);

/// Applies `train.deterministic` to the process: on a GPU, every operator then uses only
/// deterministic kernels, and throws if it has none. Call this before the first operator. Does
/// nothing on a CPU.
void choose_determinism(const TrainOptions& train, at::Device device);

/// Whether a GPU has flash attention and fast matrix products in bf16: compute capability 8.0
/// (Ampere) or newer. False for a CPU.
bool is_ampere_or_newer(at::Device device);

/// "fp32" or "bf16" for `precision: auto`: bf16 on GPUs since Ampere and on CPUs with AMX,
/// otherwise fp32. For a CUDA device without an index, the first GPU decides.
const char* automatic_precision(at::Device device);
at::ScalarType compute_dtype(const TrainOptions& train);
/// Whether the experiment trains on a GPU in bf16, also if `device` and `precision` are `auto`.
/// Does not check whether the GPU can be used.
bool trains_on_gpu_in_bf16(const TrainOptions& train);

/// The GPU's nominal dense bf16 rate in FLOP/s, looked up by name; 0 for unknown GPUs and for CPUs.
double peak_flops(at::Device device);
/// Same as above, for a GPU name such as "NVIDIA H100 80GB HBM3".
double peak_flops_of(const std::string& gpu_name);

/// Peak memory in bytes over the process's lifetime: for a GPU, the memory allocated to tensors;
/// for a CPU, the resident memory of the process.
int64_t peak_memory_bytes(at::Device device);

}  // namespace dsv3
