#include "track/feed.h"

#include <fstream>

#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

namespace dsv3 {
namespace {

constexpr size_t kBytesPerRead = 256 << 10;

void store_offset(const std::filesystem::path& file, int64_t lines) {
  fs::write_atomically(file, Json{{"lines", lines}}.dump());
}

}  // namespace

Feed::Feed(std::filesystem::path journal, std::filesystem::path offset_file)
    : journal_(std::move(journal)), offset_file_(std::move(offset_file)) {
  // Only once, so that a tracker does not write to a folder that takes the run folder's place.
  fs::make_folders(offset_file_.parent_path());
  load();
}

/// If a power cut removed acknowledged lines, starts at the end of the journal: the run writes
/// those lines again, and they are sent again. Stores that place, because otherwise the next start
/// would take lines that were never sent for acknowledged.
void Feed::load() {
  if (!std::filesystem::exists(offset_file_)) return;
  const auto acknowledged = read_json(offset_file_).at("lines").get<int64_t>();
  std::ifstream file(journal_, std::ios::binary);
  for (std::string line; lines_ < acknowledged && std::getline(file, line) && !file.eof();) {
    ++lines_;
    bytes_ += int64_t(line.size()) + 1;
  }
  if (lines_ < acknowledged) store_offset(offset_file_, lines_);
}

std::vector<std::string> Feed::read(size_t count) const {
  std::vector<std::string> lines;
  std::ifstream file(journal_, std::ios::binary);
  file.seekg(bytes_);
  size_t bytes = 0;
  for (std::string line;
       lines.size() < count && bytes < kBytesPerRead && std::getline(file, line) && !file.eof();) {
    bytes += line.size();
    lines.push_back(std::move(line));
  }
  return lines;
}

void Feed::acknowledge(const std::vector<std::string>& lines, bool store) {
  for (const std::string& line : lines) bytes_ += int64_t(line.size()) + 1;
  lines_ += int64_t(lines.size());
  if (store) store_offset(offset_file_, lines_);
}

}  // namespace dsv3
