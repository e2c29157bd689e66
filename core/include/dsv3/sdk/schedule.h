// Interface of learning-rate schedules.
#pragma once

#include <cstdint>
#include <string>

#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

class Schedule : public Pluggable {
 public:
  ~Schedule() override;
  /// Factor on the learning rate for the 1-based `step` of `total`.
  virtual double factor(int64_t step, int64_t total) const = 0;
  /// Why the options are invalid for a run of `total` steps, and what to do about it; "" = they are
  /// valid. A message that starts with an option's name is reported at that option. Checked before
  /// a run starts.
  virtual std::string problem(int64_t total) const;
};

/// problem() of a schedule with an option `warmup`, in steps.
std::string warmup_problem(int64_t warmup, int64_t total);

}  // namespace dsv3
