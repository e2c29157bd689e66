// Interface for learning-rate schedules.
#pragma once

#include <cstdint>
#include <string>

#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

class Schedule : public Pluggable {
 public:
  ~Schedule() override;
  /// Learning-rate factor in step `step` (from 1) of `total` steps.
  virtual double factor(int64_t step, int64_t total) const = 0;
  /// Explains why the options are invalid for a run of `total` steps, and what to do about it; "" =
  /// they are valid. A message that starts with an option's name is reported at that option. Called
  /// before a run starts.
  virtual std::string problem(int64_t total) const;
};

/// Implements problem() for a schedule with an option `warmup`, in steps.
std::string warmup_problem(int64_t warmup, int64_t total);

}  // namespace dsv3
