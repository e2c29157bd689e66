// Random numbers that depend only on their position in a run.
#pragma once

#include <dsv3/sdk/attention.h>

namespace dsv3 {

/// Returns fp32 numbers in [0, 1), of shape `sizes`. The first dimension is the micro-batch's rows.
/// A number depends only on `key`, `stream` and its index in its row, and is bit-identical on a CPU
/// and a GPU. Use different streams for several draws in one layer.
at::Tensor uniform(const StepKey& key, at::IntArrayRef sizes, at::Device device,
                   int64_t stream = 0);

/// Dropout (Srivastava et al., 2014): sets elements of x [B, ...] to 0 with probability `p` and
/// divides the others by 1 - p. Returns x if p is 0 or outside of training. A recomputed or resumed
/// forward pass drops the same elements.
at::Tensor dropout(const at::Tensor& x, double p, const Sequence& seq, int64_t stream = 0);

}  // namespace dsv3
