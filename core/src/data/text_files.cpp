#include <ATen/Parallel.h>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/json.h>
#include <dsv3/support/text_files.h>
#include <dsv3/support/utf8.h>

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr size_t kListedProblems = 20;

[[noreturn]] void fail(const std::string& what) {
  throw Error(what, ExitCode::data);
}

bool has_extension(const stdfs::path& path, std::initializer_list<const char*> extensions) {
  return std::find(extensions.begin(), extensions.end(), path.extension().string()) !=
         extensions.end();
}

/// A folder of data may contain the folder of runs, whose files are not text to train on.
bool is_run_folder(const stdfs::path& folder) {
  std::error_code ignored;
  return stdfs::exists(folder / "lock", ignored) && stdfs::exists(folder / "config.yaml", ignored);
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
  stdfs::recursive_directory_iterator entry(
      path, stdfs::directory_options::follow_directory_symlink, error),
      end;
  for (; !error && entry != end; entry.increment(error)) {
    if (is_run_folder(entry->path())) {
      entry.disable_recursion_pending();
      continue;
    }
    if (!has_extension(entry->path(), {".txt", ".jsonl"}) || entry->is_directory(error)) continue;
    if (!entry->is_regular_file(error))
      fail(entry->path().string() + " is not a regular file" +
           (error ? ": " + error.message() : "") + "; remove it, or replace it by the file itself");
    found.push_back(entry->path().string());
  }
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

struct InvalidDocument : std::runtime_error {
  InvalidDocument(size_t at, const std::string& what) : std::runtime_error(what), offset(at) {}
  size_t offset;  // of the problem, in the document
};

/// Throws InvalidDocument unless `text` is UTF-8 without zero bytes.
void check_text(std::string_view text) {
  if (const size_t zero = text.find('\0'); zero != text.npos)
    throw InvalidDocument(zero, "zero byte; convert the file to UTF-8 if it is text");
  if (const size_t end = valid_prefix(text); end < text.size())
    throw InvalidDocument(end, "invalid UTF-8; convert the file to UTF-8");
}

/// Returns the text in a line of a .jsonl file. Throws InvalidDocument.
std::string decode(std::string_view bytes, const std::string& field) {
  Json line;
  try {
    line = parse_json(bytes, "");
  } catch (const Error& error) {
    // The message starts with ":1:COLUMN: ".
    const std::string what = error.what();
    char* end = nullptr;
    const size_t column = std::strtoul(what.c_str() + std::string_view(":1:").size(), &end, 10);
    throw InvalidDocument(column - 1, end + std::string_view(": ").size());
  }
  if (!line.is_object()) throw InvalidDocument(0, "every line of a .jsonl file must be an object");
  const auto text = line.find(field);
  if (text == line.end()) {
    std::string keys;
    for (const auto& item : line.items()) keys += (keys.empty() ? "" : ", ") + item.key();
    throw InvalidDocument(0, "no field '" + field + "'; the object has only: " + keys +
                                 "; set `field` (or --field) to the one that contains the text");
  }
  if (!text->is_string()) throw InvalidDocument(0, "field '" + field + "' must be a string");
  return std::move(text->get_ref<std::string&>());
}

/// Returns what is wrong with a document; nullopt = it is valid.
std::optional<InvalidDocument> problem_in(std::string_view bytes, bool jsonl,
                                          const std::string& field) {
  try {
    if (jsonl)
      decode(bytes, field);
    else
      check_text(bytes);
    return std::nullopt;
  } catch (const InvalidDocument& invalid) {
    return invalid;
  }
}

}  // namespace

TextFiles::TextFiles(const std::vector<std::string>& paths, const TextFormat& format)
    : field_(format.field) {
  if (format.documents != "blank_line" && format.documents != "line" && format.documents != "file")
    fail("unknown document boundary '" + format.documents + "'; use blank_line, line or file");
  if (format.on_error != "fail" && format.on_error != "skip")
    fail("unknown on_error '" + format.on_error + "'; use fail or skip");
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
  check_documents(format.on_error == "skip");
  if (documents_.empty() && count_ > 0) fail("no valid text in " + source_ + ":" + invalid_);
  if (documents_.empty())
    fail("no text in " + source_ + ": " +
         (found.size() == 1 ? "it is" : "its " + std::to_string(found.size()) + " files are") +
         " empty or whitespace-only");
}

void TextFiles::add(uint32_t file, std::string_view document) {
  documents_.push_back({file, uint32_t(documents_.size()),
                        uint64_t(document.data() - files_[file].mapping.data()), document.size(),
                        document_hash(document)});
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

std::string_view TextFiles::bytes_of(const Document& document) const {
  return files_[document.file].mapping.view().substr(document.begin, document.size);
}

/// Lists the first of the documents with these indices: "file:line:column: problem".
std::string TextFiles::listed(const std::vector<size_t>& invalid) const {
  std::string text;
  for (size_t i = 0; i < std::min(invalid.size(), kListedProblems); ++i) {
    const Document& document = documents_[invalid[i]];
    const File& file = files_[document.file];
    const InvalidDocument problem = *problem_in(bytes_of(document), file.jsonl, field_);
    // Lines are counted only here, because the index does not store their numbers.
    const std::string_view before = file.mapping.view().substr(0, document.begin + problem.offset);
    text += c10::str("\n  ", file.path, ":", std::count(before.begin(), before.end(), '\n') + 1,
                     ":", before.size() - (before.rfind('\n') + 1) + 1, ": ", problem.what());
  }
  if (invalid.size() > kListedProblems)
    text += c10::str("\n  and ", invalid.size() - kListedProblems, " more");
  return text;
}

void TextFiles::check_documents(bool skip) {
  std::vector<char> is_valid(documents_.size());
  at::parallel_for(0, std::ssize(documents_), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      is_valid[i] = !problem_in(bytes_of(documents_[i]), files_[documents_[i].file].jsonl, field_)
                         .has_value();
  });
  count_ = documents_.size();
  std::vector<size_t> invalid, valid;
  for (size_t i = 0; i < count_; ++i) (is_valid[i] ? valid : invalid).push_back(i);
  if (invalid.empty()) return;
  invalid_ = listed(invalid);
  if (!skip)
    fail(c10::str(invalid.size(), " of ", count_, count_ == 1 ? " document" : " documents", " of ",
                  source_, invalid.size() == 1 ? " is" : " are", " invalid:", invalid_,
                  "\nCorrect or remove them, or leave them out with `on_error: skip` (--on-error "
                  "skip for dsv3 eval and dsv3 data "
                  "prepare)"));
  for (const size_t i : invalid) bytes_ -= documents_[i].size;
  for (size_t i = 0; i < valid.size(); ++i) documents_[i] = documents_[valid[i]];
  documents_.resize(valid.size());
}

void TextFiles::warn_about_skipped() const {
  if (skipped() > 0)
    log::warning(c10::str("skipped ", skipped(), " of ", count_, " documents of ", source_,
                          ", which are invalid:", invalid_));
}

std::string_view TextFiles::text(const Document& document, std::string& buffer) const {
  const File& file = files_[document.file];
  const std::string_view bytes = bytes_of(document);
  if (document_hash(bytes) != document.hash)
    fail(file.path +
         " has changed while it was in use; start again, and replace files instead of writing to "
         "them");
  return file.jsonl ? buffer = decode(bytes, field_) : bytes;
}

}  // namespace dsv3
