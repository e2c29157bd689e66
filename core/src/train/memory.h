// Estimates the memory that one rank needs for training.
#pragma once

#include <dsv3/runtime/optimizer_set.h>

#include "model/measure.h"

namespace dsv3 {

/// Peak memory during a training step, in bytes: on a CPU of the whole process, on a GPU of all
/// tensors.
struct MemoryEstimate {
  int64_t process = 0;  ///< program, libraries and their buffers; 0 on a GPU
  int64_t weights = 0;  ///< fp32 master weights and the copy in the compute dtype
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  ///< of one micro-batch
  int64_t total() const { return process + weights + gradients + optimizer + activations; }
};

/// Estimates the memory of one experiment for different micro-batches. Measures activations, and
/// asks the strategy and the optimizers about the rest.
class MemoryEstimator {
 public:
  /// `meta` is the experiment's model on the meta device. Keeps references to the experiment and
  /// the factory.
  MemoryEstimator(const Experiment& experiment, Plugins& plugins, const ModelFactory& factory,
                  const Model& meta, const OptimizerSet& optimizers);

  /// Throws dsv3::Error if a component does not run on the meta device.
  MemoryEstimate estimate(int64_t micro_batch, bool recompute) const;

 private:
  Measurement measurement_;
  at::DeviceType device_;
  MemoryEstimate fixed_;  ///< without activations
};

}  // namespace dsv3
