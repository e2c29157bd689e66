// metrics.jsonl: one flat JSON object per line, append-only.
#pragma once

#include <set>

#include <dsv3/runtime/journal_file.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

/// Formats an event as one line, with its newline: {"step": 10, "tokens": 81920, "time":
/// 1764000000.123, "train/loss": 5.1, ...}. Numbers round-trip exactly. NaN and infinities are
/// written as by number_to_json.
std::string metrics_line(const Event& event);

/// Writes metrics.jsonl; not thread-safe.
class MetricsFile {
 public:
  /// Opens or creates `path` and appends after the last complete line.
  explicit MetricsFile(std::filesystem::path path);
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  /// Appends a line and sets `event.id` to its zero-based line number. Returns false and writes
  /// nothing if a resumed run repeats an event that is already in the file. An event is a
  /// repetition if its step is before the last one, or if it is at the last step and one of that
  /// step's lines starts with the same metric (training and validation may each write a line for
  /// the same step).
  bool append(Event& event);
  /// Removes all lines, because the run starts again.
  void clear();
  /// Calls fsync. Call this before saving a checkpoint, so that a power failure loses no line.
  void sync() { file_.sync(); }

  /// Step of the last line; -1 = the file has no lines.
  int64_t last_step() const { return last_step_; }
  /// Time of the line that append() wrote last; 0 = none.
  double last_time() const { return last_time_; }
  int64_t lines() const { return file_.lines(); }

 private:
  void read_last_step(std::string_view lines);

  int64_t last_step_ = -1;
  double last_time_ = 0;
  std::set<std::string> at_last_step_;  // first metric in each line of the last step
  JournalFile file_;                    // the last member, because opening it sets the others
};

}  // namespace dsv3
