// Splits text files into documents: .txt files at blank lines, at every newline, or not at all;
// .jsonl files into one document per line.
#pragma once

#include <vector>

#include <dsv3/support/fs.h>

namespace dsv3 {

/// How to split files into documents.
struct TextFormat {
  /// Where a .txt document ends: "blank_line" (a whitespace-only line), "line", or "file".
  std::string documents = "blank_line";
  std::string field = "text";  ///< field that contains the text in each line of a .jsonl file
};

/// Memory-mapped files split into documents. Thread-safe after construction.
class TextFiles {
 public:
  struct Document {
    uint32_t file = 0;
    uint64_t begin = 0, size = 0;  ///< byte range in the file; the whole line in a .jsonl file
    uint64_t hash = 0;             ///< document_hash() of these bytes
  };

  /// `paths` are text files or folders, whose .txt and .jsonl files are read recursively in name
  /// order. A .txt document does not include its final newline. Skips byte-order marks and
  /// whitespace-only documents. Throws a dsv3::Error (ExitCode::data) that names the path if it is
  /// missing, unreadable, empty, compressed or binary.
  TextFiles(const std::vector<std::string>& paths, const TextFormat& format);

  const std::vector<Document>& documents() const { return documents_; }
  /// Returns the document's text, decoded into `buffer` if necessary. Throws an error with file and
  /// line for invalid JSON.
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
