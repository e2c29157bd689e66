// Text files as documents: .txt cut at blank lines, lines or files, and .jsonl with one document a
// line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <dsv3/support/fs.h>

namespace dsv3 {

/// How to find documents in files.
struct TextFormat {
  /// Where a .txt document ends: "blank_line" (a line of white space only), "line", or "file".
  std::string documents = "blank_line";
  std::string field = "text";  ///< of a .jsonl line, holds the text
};

/// Memory-mapped files cut into documents. Thread-safe once built.
class TextFiles {
 public:
  struct Document {
    uint32_t file = 0;
    uint64_t begin = 0, size = 0;  ///< bytes of the file; for .jsonl the whole line
    uint64_t hash = 0;             ///< document_hash of these bytes
  };

  /// `paths`: files, and folders whose .txt and .jsonl files are taken recursively, in order of
  /// their names. A .txt document has no line end at its end; a byte order mark and documents of
  /// white space only are left out. Throws dsv3::Error (ExitCode::data) naming the path: missing,
  /// unreadable, empty, nothing found, compressed or binary formats.
  TextFiles(const std::vector<std::string>& paths, const TextFormat& format);

  const std::vector<Document>& documents() const { return documents_; }
  /// The text; `buffer` holds it when it must be decoded. Throws with file and line on bad JSON.
  std::string_view text(const Document& document, std::string& buffer) const;
  uint64_t bytes() const { return bytes_; }  ///< of all documents
  /// The paths as given, for error texts.
  const std::string& source() const { return source_; }

 private:
  struct File {
    std::string path;
    bool jsonl;
    fs::Mapping mapping;
  };
  void find_documents(uint32_t file, const TextFormat& format);
  void add(uint32_t file, std::string_view document);

  std::string field_, source_;
  std::vector<File> files_;
  std::vector<Document> documents_;
  uint64_t bytes_ = 0;
};

}  // namespace dsv3
