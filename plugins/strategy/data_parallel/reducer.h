// Sums gradients over ranks while the backward pass continues.
#pragma once

#include <deque>

#include "segment.h"

namespace dsv3::data_parallel {

/// The sum of one piece of a segment's gradients: over a row, which leaves each rank its shard, and
/// then, if the step's gradients are complete, over the rows.
class Reduction {
 public:
  /// Sums elements `begin` to `end` of each rank's part. `is_last`: no later piece of the segment.
  Reduction(Segment& segment, int64_t begin, int64_t end, bool over_rows, at::ScalarType dtype,
            bool is_last);
  /// Waits for the operation in progress, and starts the next one. Returns false after the last.
  bool advance();

 private:
  enum class Phase { waiting, row, rows, copies, done };
  void finish();
  bool start_next();
  void start_row();
  void start_rows();
  at::Tensor own_copy() const;  ///< the part of `piece_` that this rank sums over the rows

  Segment& segment_;
  int64_t begin_, end_;
  bool over_rows_, is_last_;
  at::ScalarType dtype_;
  at::Tensor piece_;  // fp32 [end - begin] of the segment's reduced gradients
  at::Tensor sum_;    // of this micro-batch, if earlier ones are in `piece_`
  Phase phase_ = Phase::waiting;
  std::unique_ptr<Work> work_;
};

/// All ranks reduce the same segments in the same order.
class Reducer {
 public:
  explicit Reducer(const Settings& settings) : settings_(settings) {}
  /// Starts to sum the segment's gradients, which must not be accessed before finish().
  /// `over_rows`: they are complete.
  void start(Segment& segment, bool over_rows);
  /// Lets operations that were started earlier proceed to their next phase.
  void advance();
  void finish();

 private:
  const Settings& settings_;
  std::deque<Reduction> reductions_;
};

}  // namespace dsv3::data_parallel
