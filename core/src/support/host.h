// This machine's clocks, host name and programs.
#pragma once

#include <array>
#include <chrono>
#include <optional>
#include <string>

namespace dsv3 {

/// Seconds on a monotonic clock, for rates and intervals.
inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds since the epoch, with microsecond resolution.
double wall_seconds();

/// Formats seconds since the epoch as UTC: 2026-01-31T23:59:59Z. May be called in a signal handler.
std::array<char, 40> utc_text(double seconds);

/// The inverse of utc_text(); nullopt for other text.
std::optional<double> seconds_of(const std::string& utc);

/// Memory that this machine, or the container of this process, can still give to programs.
uint64_t available_bytes();

/// This machine's name.
std::string host_name();

/// Returns what a shell command prints, without line ends at its end; nullopt if it fails or does
/// not exist. Of this process's environment, the command gets only the variables that git needs.
std::optional<std::string> output_of(const std::string& command);

}  // namespace dsv3
