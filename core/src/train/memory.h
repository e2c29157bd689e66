// Estimates the memory that one rank needs for training.
#pragma once

#include <dsv3/runtime/optimizer_set.h>

#include "model/measure.h"

namespace dsv3 {

/// Peak memory of one rank during a training step, in bytes: on a CPU of the whole process, on a
/// GPU of all tensors.
struct MemoryEstimate {
  int64_t process = 0;  ///< program, libraries and their buffers; 0 on a GPU
  int64_t weights = 0;  ///< fp32 master weights and the copy in the compute dtype
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  ///< of one micro-batch
  int64_t exchange = 0;     ///< that an update needs beyond gradients and activations
  int64_t offloaded = 0;    ///< in host memory instead, not part of total()
  int64_t total() const {
    return process + weights + gradients + optimizer + activations + exchange;
  }
};

/// Estimates the memory of one experiment for different micro-batches. Measures activations, and
/// asks the strategy and the optimizers about the rest.
class MemoryEstimator {
 public:
  /// For the first of `ranks` ranks. Keeps references to all but the numbers. Call use() next.
  MemoryEstimator(const Experiment& experiment, Plugins& plugins, const ModelFactory& factory,
                  int64_t vocab, int64_t ranks);
  /// Estimates with this strategy from now on.
  void use(const ComponentSpec& strategy);

  /// Throws dsv3::Error if a component does not run on the meta device.
  MemoryEstimate estimate(int64_t micro_batch, bool recompute) const;
  /// Bytes that a rank sends in a step.
  int64_t bytes_moved(int64_t microbatches) const;

 private:
  const Experiment& experiment_;
  Plugins& plugins_;
  const ModelFactory& factory_;
  const int64_t vocab_, ranks_;
  Measurement measurement_;
  at::DeviceType device_;
  MemoryEstimate fixed_;  ///< without activations
  Cost cost_;
};

}  // namespace dsv3
