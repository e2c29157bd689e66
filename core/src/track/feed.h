// A journal, as far as one tracker has received it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace dsv3 {

/// Reads a journal from the line after the last acknowledged one. The number of that line is stored
/// in a file of the run folder, so a killed run loses nothing, and a tracker that fails catches up
/// later.
class Feed {
 public:
  /// `journal` need not exist yet. Creates the folder of `offset_file`.
  Feed(std::filesystem::path journal, std::filesystem::path offset_file);

  /// Reads up to `count` complete lines after the acknowledged ones. Stops after 256 KiB, so that a
  /// journal that has grown while the tracker was away needs little memory.
  std::vector<std::string> read(size_t count) const;
  /// Number of acknowledged lines, which is the number of the next line.
  int64_t acknowledged() const { return lines_; }
  /// Acknowledges lines that read() has returned. `store` = false changes no file.
  void acknowledge(const std::vector<std::string>& lines, bool store = true);
  const std::filesystem::path& journal() const { return journal_; }

 private:
  void load();

  std::filesystem::path journal_, offset_file_;
  int64_t lines_ = 0, bytes_ = 0;  // acknowledged
};

}  // namespace dsv3
