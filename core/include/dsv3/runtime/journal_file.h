// A file of lines that is only appended to, and survives a killed process.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <dsv3/support/fs.h>

namespace dsv3 {

/// The metrics and the records of a run are such files. Each line is written by one write(2), so a
/// killed process leaves at most one torn line, which is removed when the file is opened again. Not
/// thread-safe.
class JournalFile {
 public:
  /// Opens or creates `path`. Removes lines at its end for which `is_line` is false. Calls `opened`
  /// with the remaining lines, now and whenever the file is opened again because it was removed,
  /// replaced or cut short, which is logged as a warning, or because a write failed.
  JournalFile(std::filesystem::path path, std::function<bool(std::string_view)> is_line,
              std::function<void(std::string_view)> opened);

  /// Looks whether the file is still the one that was opened.
  void check();
  /// Appends `line`, which ends with a newline, and returns its number, from 0.
  int64_t append(const std::string& line);
  /// Removes all lines.
  void clear();
  /// Calls fsync.
  void sync();

  const std::filesystem::path& path() const { return path_; }
  int64_t lines() const { return lines_; }

 private:
  void reopen();

  std::filesystem::path path_;
  std::function<bool(std::string_view)> is_line_;
  std::function<void(std::string_view)> opened_;
  std::optional<fs::Writer> writer_;  // empty after a failed write
  int64_t lines_ = 0;
  uint64_t bytes_ = 0;  // size of the file
};

/// Returns the last line in `text`, which is complete (with its newline) or torn.
std::string_view last_line(std::string_view text);

}  // namespace dsv3
