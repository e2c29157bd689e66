// What this machine gives: device, precision, threads, peak rates.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// Loads LibTorch's CUDA library if there is a GPU; false = no GPU, or no CUDA library beside
/// LibTorch.
bool load_cuda();

/// `train.device` of a resolved experiment; throws when it asks for a GPU that is not there.
at::Device device_of(const TrainOptions& train);

/// "fp32" or "bf16" for `precision: auto`: bf16 (with fp32 master weights) on GPUs and on CPUs with
/// AMX, else fp32.
const char* automatic_precision(at::Device device);
at::ScalarType compute_dtype(const TrainOptions& train);

/// Dense bf16 FLOP/s of the GPU by its name; 0 = not known (and on a CPU).
double peak_flops(at::Device device);

/// Most memory this process has held: of the device on a GPU, resident on a CPU.
int64_t peak_memory_bytes();

}  // namespace dsv3
