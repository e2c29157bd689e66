// Properties of this machine: device, precision, peak rates, memory.
#pragma once

#include <string>

#include <ATen/ATen.h>

#include <dsv3/runtime/experiment.h>

#include "machine/driver.h"

namespace dsv3 {

/// The device selected by `train.device`, with the GPU of $LOCAL_RANK, 0 by default. `auto` is the
/// CPU only on a machine without GPUs. Throws ExitCode::data if a GPU is selected and cannot be
/// used. The first call that selects a GPU loads LibTorch's CUDA library. Nothing may ask LibTorch
/// about CUDA before, because LibTorch keeps its first answer.
at::Device device_of(const TrainOptions& train);

/// The GPU of `device`, a CUDA device, or nullptr if the driver does not report it.
const Gpu* gpu_of(at::Device device);

/// Applies `train.deterministic` to the process: on a GPU, every operator chooses kernels that
/// repeat bit for bit, and throws if it has none. Call it before the first operator. On a CPU it
/// does nothing.
void choose_determinism(const TrainOptions& train, at::Device device);

/// "fp32" or "bf16" for `precision: auto`: bf16 on GPUs and on CPUs with AMX, otherwise fp32.
const char* automatic_precision(at::Device device);
at::ScalarType compute_dtype(const TrainOptions& train);

/// Dense bf16 FLOP/s of the GPU, looked up by name; 0 = unknown, or a CPU.
double peak_flops(at::Device device);
/// The same for the name of a GPU, such as "NVIDIA H100 80GB HBM3".
double peak_flops_of(const std::string& gpu_name);

/// Bytes of tensors on a GPU at their peak, over the process's lifetime; for the CPU, the peak
/// resident memory of the process.
int64_t peak_memory_bytes(at::Device device);

}  // namespace dsv3
