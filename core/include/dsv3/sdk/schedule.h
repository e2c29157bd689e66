// Interface of learning-rate schedules.
#pragma once

#include <cstdint>

namespace dsv3 {

class Schedule {
 public:
  virtual ~Schedule();
  /// Factor on the learning rate for the 1-based `step` of `total`.
  virtual double factor(int64_t step, int64_t total) const = 0;
};

}  // namespace dsv3
