// events.jsonl: what a run records besides metrics. One JSON object per line, append-only.
#pragma once

#include <mutex>
#include <optional>

#include <dsv3/runtime/journal_file.h>
#include <dsv3/sdk/records.h>
#include <dsv3/support/json.h>

namespace dsv3 {

/// Formats a record as one line, with its newline: {"type": "checkpoint", "step": 10, "time":
/// 1764000000.123, "path": "checkpoints/step-0000010", "metrics": {"val/loss": 5.1}}.
std::string record_line(const Record& record);
/// Parses a line; `id` is its number, from 0. Throws dsv3::Error if it is not one of record_line().
Record parse_record(const std::string& line, int64_t id);

/// Writes events.jsonl. Thread-safe.
class RecordsFile {
 public:
  /// Opens or creates `path` and appends after the last complete line.
  explicit RecordsFile(std::filesystem::path path);
  RecordsFile(const RecordsFile&) = delete;
  RecordsFile& operator=(const RecordsFile&) = delete;

  /// Appends a record at `step` with `time`; 0 = the current time. Returns nullopt and writes
  /// nothing if a resumed run repeats samples or a checkpoint.
  std::optional<Record> append(int64_t step, Record::Content content, double time = 0);
  /// Whether the file has a checkpoint of this step, or of a later one.
  bool has_checkpoint(int64_t step) const;
  /// Removes all lines, because the run starts again.
  void clear();

 private:
  void read_steps(std::string_view lines);
  bool repeats(const Record& record) const;

  mutable std::mutex mutex_;
  int64_t opened_sample_ = -1, opened_checkpoint_ = -1;  // last steps when the file was opened
  JournalFile file_;  // the last member, because opening it sets the others
};

}  // namespace dsv3
