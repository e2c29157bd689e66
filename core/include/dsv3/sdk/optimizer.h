// Interface for optimizers, which are pure update rules for slices of parameters. The core stores
// their state.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/metrics.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// A piece of a parameter. box_offset and box_shape describe a box, which is a multi-dimensional
/// slice of the global tensor. The piece is elements `begin` to `end` of that box, in row-major
/// order.
struct Range {
  std::string name;
  std::vector<int64_t> global_shape, box_offset, box_shape;
  int64_t begin = 0, end = 0;  ///< element indices within the box
  bool primary = true;         ///< true on exactly one of the ranks that store this piece
};

/// One state tensor of an optimizer, stored for each slice.
struct StateSlot {
  /// Shape of the state. All but `value` and `scalar` require whole matrices [rows, columns].
  enum class Like {
    value = 1,           ///< like the slice's value
    matrix,              ///< [rows, columns]
    scalar,              ///< []
    rows,                ///< [rows]
    columns,             ///< [columns]
    rows_by_rows,        ///< [rows, rows]
    columns_by_columns,  ///< [columns, columns]
  };
  std::string name;  ///< e.g. "exp_avg"
  Like like = Like::value;
  at::ScalarType dtype = at::kFloat;
};

/// Input of an update: a piece's fp32 value, which is updated in place, its fp32 gradient, which
/// must not be changed, and its state tensors in the order of slots().
struct Slice {
  const Range& range;
  at::Tensor value, grad;  // [rows, cols] for whole matrices, else one-dimensional
  std::span<at::Tensor> state;
};

struct OptimStep {
  int64_t update = 1;    ///< update number for bias correction, counted from 1 without skipped
                         ///< steps
  double lr_factor = 1;  ///< learning-rate factor from the schedule
  double progress = 0;   ///< step / total steps, in (0, 1]
  Metrics metrics = {};
};

class Optimizer : public Pluggable {
 public:
  ~Optimizer() override;
  /// Whether step() requires whole matrices [rows, cols]. If false, it accepts one-dimensional
  /// pieces of any length.
  virtual bool whole_matrices() const = 0;
  /// If whole_matrices(), whether step() also accepts whole vectors, as [1, n]. An optimizer that
  /// reduces over a whole vector, such as Adafactor's update clipping, returns true from both.
  virtual bool whole_vectors() const { return false; }
  virtual std::vector<StateSlot> slots() const = 0;
  /// Updates `slices` in place. Uses no collectives and keeps no state between calls. Called
  /// several times per step, with disjoint slices.
  virtual void step(std::span<const Slice> slices, const OptimStep& step) = 0;
  /// Learning rate before it is multiplied by the schedule's factor, for --dry-run and the metrics.
  virtual double lr() const = 0;
  /// Whether validation, samples and stored models use evaluation_weights() instead of the weights
  /// that are trained.
  virtual bool has_evaluation_weights() const { return false; }
  /// Returns a slice's weights for evaluation, fp32 of the same shape, such as a moving average or
  /// the averaged iterate of schedule-free methods (Defazio et al., arXiv 2405.15682). Called
  /// between steps, with an undefined gradient.
  virtual at::Tensor evaluation_weights(const Slice& slice) const { return slice.value; }
};

}  // namespace dsv3
