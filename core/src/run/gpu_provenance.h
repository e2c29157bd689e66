// The GPU part of provenance.json.
#pragma once

#include <ATen/core/Tensor.h>

#include <dsv3/support/json.h>

namespace dsv3 {

/// What the results on a GPU depend on: {"name", "index", "memory_bytes", "capability", "driver",
/// "cuda": {"driver", "runtime"}, "cudnn", "nccl", "tf32": {"matmul", "convolution"},
/// "deterministic"}. `device` is a CUDA device. Never throws: a value that cannot be determined is
/// null.
Json gpu_provenance(at::Device device);

/// The first version in `text`, such as "580.82.07" in the text of /proc/driver/nvidia/version;
/// null if there is none.
Json driver_version_in(const std::string& text);

}  // namespace dsv3
