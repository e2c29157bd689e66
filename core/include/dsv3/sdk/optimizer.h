// Interface for optimizers, which are pure update rules for slices of parameters. The core stores
// their state.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

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
  enum class Like { value = 1, matrix, scalar };
  std::string name;         ///< e.g. "exp_avg"
  Like like = Like::value;  ///< shape of the state: like the value, like the whole matrix, or a
                            ///< scalar
  at::ScalarType dtype = at::kFloat;
};

/// Input of an update: a piece's fp32 value, which is updated in place, its fp32 gradient, and its
/// state tensors in the order of slots().
struct Slice {
  const Range& range;
  at::Tensor value, grad;  // [rows, cols] for whole matrices, else one-dimensional
  std::span<at::Tensor> state;
};

struct OptimStep {
  int64_t update = 1;    ///< update number for bias correction, counted from 1 without skipped
                         ///< steps
  double lr_factor = 1;  ///< learning-rate factor from the schedule
};

class Optimizer : public Pluggable {
 public:
  ~Optimizer() override;
  /// Whether step() requires whole matrices [rows, cols]. If false, it accepts one-dimensional
  /// pieces of any length.
  virtual bool whole_matrices() const = 0;
  virtual std::vector<StateSlot> slots() const = 0;
  /// Updates `slices` in place. Uses no collectives and keeps no state between calls. Called
  /// several times per step, with disjoint slices.
  virtual void step(std::span<const Slice> slices, const OptimStep& step) = 0;
  /// Learning rate before it is multiplied by the schedule's factor, for --dry-run and the metrics.
  virtual double lr() const = 0;
};

}  // namespace dsv3
