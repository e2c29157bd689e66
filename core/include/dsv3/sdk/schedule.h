// Interface for learning-rate schedules.
#pragma once

#include <cstdint>
#include <string>

#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

class Schedule : public Pluggable {
 public:
  ~Schedule() override;
  /// Returns the learning-rate factor for step `step` (counted from 1) of `total` steps.
  virtual double factor(int64_t step, int64_t total) const = 0;
  /// Returns an error message if the options are invalid for a run of `total` steps, or "". The
  /// message says why, and what to do about it. If it starts with an option's name, it is reported
  /// at that option. Called before a run starts.
  virtual std::string problem(int64_t total) const;
};

/// Implements problem() for a schedule whose option `warmup` is a number of steps.
std::string warmup_problem(int64_t warmup, int64_t total);

}  // namespace dsv3
