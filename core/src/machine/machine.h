// Properties of this machine: device, precision, peak rates, memory.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// Loads LibTorch's CUDA library if there is a GPU. Returns false if there is no GPU or LibTorch
/// has no CUDA library.
bool load_cuda();

/// The device selected by `train.device`. Throws if it is cuda but no GPU was found.
at::Device device_of(const TrainOptions& train);

/// "fp32" or "bf16" for `precision: auto`: bf16 on GPUs and on CPUs with AMX, otherwise fp32.
const char* automatic_precision(at::Device device);
at::ScalarType compute_dtype(const TrainOptions& train);

/// Dense bf16 FLOP/s of the GPU, looked up by name; 0 = unknown, or a CPU.
double peak_flops(at::Device device);

/// Peak resident memory of this process.
int64_t peak_memory_bytes();

}  // namespace dsv3
