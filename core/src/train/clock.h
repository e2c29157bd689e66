// Time for rates and intervals.
#pragma once

#include <chrono>

namespace dsv3 {

/// Seconds of a clock that never goes back.
inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace dsv3
