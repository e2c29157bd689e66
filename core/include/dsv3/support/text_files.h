// Text files as documents: .txt split at blank lines, lines or files, and .jsonl with one document
// per line.
#pragma once

#include <vector>

#include <dsv3/support/fs.h>

namespace dsv3 {

/// How files are split into documents.
struct TextFormat {
  /// Where a .txt document ends: "blank_line" (a line of white space only), "line", or "file".
  std::string documents = "blank_line";
  std::string field = "text";  ///< field of a .jsonl line that holds the text
};

/// Memory-mapped files split into documents. Thread-safe after construction.
class TextFiles {
 public:
  struct Document {
    uint32_t file = 0;
    uint64_t begin = 0, size = 0;  ///< bytes of the file; for .jsonl the whole line
    uint64_t hash = 0;             ///< document_hash of these bytes
  };

  /// `paths` are files, and folders whose .txt and .jsonl files are read recursively in order of
  /// their names. A .txt document does not include its final line end; byte order marks and
  /// documents of white space only are skipped. Throws dsv3::Error (ExitCode::data) with the path
  /// if it is missing, unreadable, empty, or of a compressed or binary format.
  TextFiles(const std::vector<std::string>& paths, const TextFormat& format);

  const std::vector<Document>& documents() const { return documents_; }
  /// The text; `buffer` holds it if it must be decoded. Throws with file and line on invalid JSON.
  std::string_view text(const Document& document, std::string& buffer) const;
  uint64_t bytes() const { return bytes_; }  ///< of all documents
  /// The paths as given, for error messages.
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
