#include <algorithm>

#include <dsv3/runtime/journal_file.h>
#include <dsv3/sdk/log.h>

namespace dsv3 {

std::string_view last_line(std::string_view text) {
  const size_t newline =
      text.size() < 2 ? std::string_view::npos : text.rfind('\n', text.size() - 2);
  return newline == std::string_view::npos ? text : text.substr(newline + 1);
}

JournalFile::JournalFile(std::filesystem::path path, std::function<bool(std::string_view)> is_line,
                         std::function<void(std::string_view)> opened)
    : path_(std::move(path)), is_line_(std::move(is_line)), opened_(std::move(opened)) {
  reopen();
}

void JournalFile::reopen() {
  std::error_code ignored;
  const std::string content = std::filesystem::exists(path_, ignored) ? fs::read(path_) : "";
  std::string_view whole = content;
  // A power cut may leave blocks of zeros, too.
  while (!whole.empty() && !(whole.ends_with('\n') && is_line_(last_line(whole))))
    whole.remove_suffix(last_line(whole).size());
  if (whole.size() < content.size()) fs::write_atomically(path_, whole);
  bytes_ = whole.size();
  lines_ = std::count(whole.begin(), whole.end(), '\n');
  opened_(whole);
  writer_.emplace(fs::Writer::append(path_));
}

/// Recognises a lost file by its size only, because a file that replaces it usually has another
/// size.
void JournalFile::check() {
  if (!writer_) return reopen();
  std::error_code error;
  if (std::filesystem::file_size(path_, error) == bytes_ && !error) return;
  log::warning(path_.string() +
               " was removed, replaced or cut short while the run wrote it, so "
               "earlier lines may be lost");
  reopen();
}

int64_t JournalFile::append(const std::string& line) {
  check();
  try {
    writer_->write(line);
  } catch (...) {
    writer_.reset();
    throw;
  }
  bytes_ += line.size();
  return lines_++;
}

void JournalFile::clear() {
  writer_.reset();
  fs::write_atomically(path_, "");
  reopen();
}

void JournalFile::sync() {
  if (writer_) writer_->sync();
}

}  // namespace dsv3
