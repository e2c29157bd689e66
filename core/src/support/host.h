// This machine's clocks and name.
#pragma once

#include <array>
#include <chrono>
#include <string>

namespace dsv3 {

/// Seconds of a clock that never goes back, for rates and intervals.
inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds since the epoch, to the microsecond.
double wall_seconds();

/// Seconds since the epoch as UTC text, 2026-01-31T23:59:59Z. A signal handler may call it.
std::array<char, 32> utc_text(double seconds);

/// This machine's name.
std::string host_name();

}  // namespace dsv3
