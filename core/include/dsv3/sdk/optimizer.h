// Interface for optimizers: pure update rules on slices. The core stores their state.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// A piece of a parameter: elements `begin` to `end`, in row-major order, of a box of the global
/// tensor.
struct Range {
  std::string name;
  std::vector<int64_t> global_shape, box_offset, box_shape;
  int64_t begin = 0, end = 0;  ///< element indices within the box
  bool primary = true;         ///< true on exactly one of the ranks that store the piece
};

/// One state tensor of an optimizer, stored for each slice.
struct StateSlot {
  enum class Like { value = 1, matrix, scalar };
  std::string name;         ///< e.g. "exp_avg"
  Like like = Like::value;  ///< shape of the state: as the value, as the whole matrix, or scalar
  at::ScalarType dtype = at::kFloat;
};

/// The input of one update: fp32 value (updated in place), its fp32 gradient, and the state by
/// slot.
struct Slice {
  const Range& range;
  at::Tensor value, grad;  // [rows, cols] for whole matrices, else one-dimensional
  std::span<at::Tensor> state;
};

struct OptimStep {
  int64_t update = 1;    ///< 1-based number of this update, not counting skipped steps, for bias
                         ///< correction
  double lr_factor = 1;  ///< from the schedule; multiplies the learning rate
};

class Optimizer : public Pluggable {
 public:
  ~Optimizer() override;
  /// True if slices must be whole matrices [rows, cols]; false for flat pieces of any length.
  virtual bool whole_matrices() const = 0;
  virtual std::vector<StateSlot> slots() const = 0;
  /// A pure function without collectives or counters. Called several times per step, with disjoint
  /// slices.
  virtual void step(std::span<const Slice> slices, const OptimStep& step) = 0;
  /// Learning rate before the schedule's factor, for --dry-run and the metrics.
  virtual double lr() const = 0;
};

}  // namespace dsv3
