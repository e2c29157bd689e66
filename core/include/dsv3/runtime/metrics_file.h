// metrics.jsonl: one flat JSON object a line, only ever appended to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include <dsv3/sdk/tracker.h>
#include <dsv3/support/fs.h>

namespace dsv3 {

/// The line of an event, with its newline: {"step": 10, "tokens": 81920, "time": 1764000000.123,
/// "train/loss": 5.1, ...}. Numbers read back as the same double; NaN and infinities are the
/// strings of number_to_json.
std::string metrics_line(const Event& event);

/// Writes metrics.jsonl; not thread-safe. Each line is one write(2), so a killed process leaves at
/// most one torn line, which the next opening drops.
class MetricsFile {
 public:
  /// Opens or creates `path` and goes on behind its last whole line.
  explicit MetricsFile(std::filesystem::path path);

  /// Appends a line and sets `event.id` to its number, from 0. Returns false and writes nothing
  /// when the file has the line already, because a resumed run computes a step again: for steps
  /// before the last, and at the last step for events whose first metric is already there (training
  /// and validation may each write a line for one step).
  bool append(Event& event);
  /// fsync; before a checkpoint, so that a power cut does not lose lines that the checkpoint is
  /// behind.
  void sync();

  int64_t last_step() const { return last_step_; }  ///< -1: no line yet
  int64_t lines() const { return lines_; }

 private:
  void reopen();

  std::filesystem::path path_;
  std::optional<fs::Writer> writer_;  // none after a failed write, whose torn line is dropped first
  int64_t last_step_ = -1, lines_ = 0;
  std::set<std::string> at_last_step_;  // first metrics of the last step's lines
};

}  // namespace dsv3
