// Measures what a training step computes and allocates. The model runs forward and backward on the
// meta device, so a measurement needs no data, no GPU and no memory for weights, and takes less
// than a second.
#pragma once

#include <dsv3/runtime/model.h>

#include "ops/meta.h"

namespace dsv3 {

/// Builds models of one experiment on the meta device and measures them. Every method throws
/// dsv3::Error if a component cannot run there.
class Measurement {
 public:
  /// Keeps references to its arguments.
  Measurement(const Experiment& experiment, int64_t vocab, const ModelFactory& factory)
      : experiment_(experiment), vocab_(vocab), factory_(factory) {}

  /// FLOPs per token of a forward and a backward pass, without recomputation.
  Flops flops_per_token() const;

  /// The largest number of bytes that a forward and backward pass over one micro-batch of `rows`
  /// rows needs at the same time on `device`, besides parameters and their gradients. Assumes that
  /// rows contain several documents.
  int64_t activation_bytes(int64_t rows, at::DeviceType device, bool recompute) const;

 private:
  const Experiment& experiment_;
  int64_t vocab_;
  const ModelFactory& factory_;
};

}  // namespace dsv3
