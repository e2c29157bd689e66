// What components receive about the current optimizer step.
#pragma once

#include <cstdint>

#include <dsv3/sdk/metrics.h>

namespace dsv3 {

/// Identifies the random numbers of a forward pass, so that a resumed or recomputed pass draws the
/// same ones. Rows are numbered within the step, over all ranks, so random numbers do not depend on
/// the micro-batch size or the number of ranks. Used by dsv3::uniform and dsv3::dropout.
struct StepKey {
  uint64_t seed = 0;
  int64_t step = 0;       ///< counted from 1
  int64_t first_row = 0;  ///< index of the micro-batch's first row
  int64_t layer = 0;
  int64_t sublayer = 0;  ///< 0 = attention, 1 = feed-forward
};

/// Passed to on_step_end() of layers and positions after an optimizer step that was not skipped.
struct StepEnd {
  at::Tensor counts;     ///< this layer's step_counts(), summed over micro-batches and ranks
  double progress = 0;   ///< step / total steps, in (0, 1]
  int64_t step = 0;      ///< counted from 1
  Metrics metrics = {};  ///< recorded on rank 0 only, because the counts are equal on all ranks
};

}  // namespace dsv3
