#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/text_files.h>

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

[[noreturn]] void fail(const std::string& what) {
  throw Error(what, ExitCode::data);
}

bool has_extension(const stdfs::path& path, std::initializer_list<const char*> extensions) {
  return std::find(extensions.begin(), extensions.end(), path.extension().string()) !=
         extensions.end();
}

/// Appends `path`, or the text files in it if it is a folder, to `found`.
void find_files(const std::string& path, std::vector<std::string>& found) {
  std::error_code error;
  const stdfs::file_status status = stdfs::status(path, error);
  if (!stdfs::exists(status))
    fail("no such text file or folder: " + path + " (relative paths start at the current folder)");
  if (!stdfs::is_directory(status)) {
    if (has_extension(path, {".gz", ".zst", ".xz", ".bz2", ".zip"}))
      fail("cannot read compressed text: " + path + "; unpack it first");
    if (has_extension(path, {".parquet", ".arrow", ".bin", ".json"}))
      fail("not a text format: " + path + "; use plain text or .jsonl");
    found.push_back(path);
    return;
  }
  const auto first = found.size();
  stdfs::recursive_directory_iterator entry(path, error), end;
  for (; !error && entry != end; entry.increment(error))
    if (has_extension(entry->path(), {".txt", ".jsonl"}) && entry->is_regular_file(error))
      found.push_back(entry->path().string());
  if (error) fail("cannot read folder " + path + ": " + error.message());
  if (found.size() == first)
    fail("no .txt or .jsonl file in folder " + path +
         "; to read a file with a different extension, pass its path");
  std::sort(found.begin() + static_cast<std::ptrdiff_t>(first), found.end());
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\n\v\f\r") == text.npos;
}

/// Removes the first line from `rest` and returns it without its newline.
std::string_view take_line(std::string_view& rest) {
  std::string_view line = rest.substr(0, rest.find('\n'));
  rest.remove_prefix(std::min(line.size() + 1, rest.size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace

TextFiles::TextFiles(const std::vector<std::string>& paths, const TextFormat& format)
    : field_(format.field) {
  if (format.documents != "blank_line" && format.documents != "line" && format.documents != "file")
    fail("unknown document boundary '" + format.documents + "'; use blank_line, line or file");
  std::vector<std::string> found;
  for (const std::string& path : paths) {
    find_files(path, found);
    source_ += (source_.empty() ? "" : ", ") + path;
  }
  for (const std::string& path : found) {
    try {
      files_.push_back({path, stdfs::path(path).extension() == ".jsonl", fs::Mapping(path)});
    } catch (const Error& error) {
      fail(error.what());
    }
    find_documents(files_.size() - 1, format);
  }
  if (documents_.empty())
    fail("no text in " + source_ + ": " +
         (found.size() == 1 ? "it is" : "its " + std::to_string(found.size()) + " files are") +
         " empty or whitespace-only");
}

void TextFiles::add(uint32_t file, std::string_view document) {
  documents_.push_back({file, uint64_t(document.data() - files_[file].mapping.data()),
                        document.size(), document_hash(document)});
  bytes_ += document.size();
}

void TextFiles::find_documents(uint32_t file, const TextFormat& format) {
  std::string_view rest = files_[file].mapping.view();
  if (rest.starts_with(kByteOrderMark)) rest.remove_prefix(kByteOrderMark.size());
  if (!files_[file].jsonl && format.documents == "file") {
    if (!is_blank(rest)) add(file, rest);
    return;
  }
  const bool by_line = files_[file].jsonl || format.documents == "line";
  std::string_view
      paragraph;  // the lines since the last blank line, including the newlines between them
  while (!rest.empty()) {
    const std::string_view line = take_line(rest);
    if (is_blank(line)) {
      if (!paragraph.empty()) add(file, paragraph);
      paragraph = {};
    } else if (by_line) {
      add(file, line);
    } else {
      const char* begin = paragraph.empty() ? line.data() : paragraph.data();
      paragraph = {begin, size_t(line.data() + line.size() - begin)};
    }
  }
  if (!paragraph.empty()) add(file, paragraph);
}

std::string_view TextFiles::text(const Document& document, std::string& buffer) const {
  const File& file = files_[document.file];
  const std::string_view bytes = file.mapping.view().substr(document.begin, document.size);
  if (!file.jsonl) return bytes;
  // Line numbers are counted only for error messages, because the document index does not store
  // them.
  const auto where = [&] {
    const char* begin = file.mapping.data();
    return c10::str(file.path, ":", std::count(begin, begin + document.begin, '\n') + 1, ":");
  };
  Json line;
  try {
    line = parse_json(bytes, "line");
  } catch (const Error& error) {
    // Replaces the "line:1:" in the parser's "line:1:COLUMN: ..." with the file and line number.
    fail(where() + std::string(error.what()).substr(std::string_view("line:1:").size()) +
         "; correct or remove the line");
  }
  const auto it = line.is_object() ? line.find(field_) : line.end();
  if (!line.is_object()) fail(where() + "1: every line of a .jsonl file must be an object");
  if (it == line.end()) {
    std::string keys;
    for (const auto& item : line.items()) keys += (keys.empty() ? "" : ", ") + item.key();
    fail(where() + "1: no field '" + field_ + "'; the object has only: " + keys +
         "; set `field` to the one that contains the text");
  }
  if (!it->is_string()) fail(where() + "1: field '" + field_ + "' must be a string");
  buffer = it->get<std::string>();
  return buffer;
}

}  // namespace dsv3
