// The GPU properties in provenance.json.
#pragma once

#include <ATen/core/Tensor.h>

#include <dsv3/support/json.h>

namespace dsv3 {

/// Returns the GPU properties and library settings that can affect numerical results: {"name",
/// "index", "memory_bytes", "capability", "driver", "cuda": {"driver", "runtime"}, "cudnn", "nccl",
/// "tf32": {"matmul", "convolution"}, "deterministic"}. `device` must be a CUDA device. Never
/// throws: a value that cannot be determined is null.
Json gpu_provenance(at::Device device);

/// The first version number in `text`, e.g. "580.82.07" in the content of
/// /proc/driver/nvidia/version; null if there is none.
Json driver_version_in(const std::string& text);

}  // namespace dsv3
