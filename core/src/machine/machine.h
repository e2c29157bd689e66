// Properties of this machine: device, precision, peak rates, memory.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// Loads LibTorch's CUDA library if there is a GPU; false = no GPU, or LibTorch has no CUDA
/// library.
bool load_cuda();

/// The device that `train.device` names; throws when it is cuda and no GPU was found.
at::Device device_of(const TrainOptions& train);

/// "fp32" or "bf16" for `precision: auto`: bf16 (with fp32 master weights) on GPUs and on CPUs with
/// AMX, else fp32.
const char* automatic_precision(at::Device device);
at::ScalarType compute_dtype(const TrainOptions& train);

/// Dense bf16 FLOP/s of the GPU by its name; 0 = unknown, or a CPU.
double peak_flops(at::Device device);

/// Peak resident memory of this process.
int64_t peak_memory_bytes();

}  // namespace dsv3
