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
  /// What to do with invalid documents: "fail" or "skip".
  std::string on_error = "fail";
};

/// Memory-mapped files split into documents. Thread-safe after construction.
class TextFiles {
 public:
  struct Document {
    uint32_t file = 0;
    uint32_t number = 0;           ///< counts all documents, including those that were skipped
    uint64_t begin = 0, size = 0;  ///< byte range in the file; the whole line in a .jsonl file
    uint64_t hash = 0;             ///< document_hash() of these bytes
  };

  /// `paths` are text files or folders, whose .txt and .jsonl files are read recursively in name
  /// order. A .txt document does not include its final newline. Skips byte-order marks and
  /// whitespace-only documents. Checks every document: a .txt document must be UTF-8 without zero
  /// bytes, and a line of a .jsonl file must be an object whose `field` is a string. Throws a
  /// dsv3::Error (ExitCode::data) that names the path if it is missing, unreadable, empty or
  /// compressed, or that lists the invalid documents, unless they are to be skipped.
  TextFiles(const std::vector<std::string>& paths, const TextFormat& format);

  const std::vector<Document>& documents() const { return documents_; }
  /// Number of documents, including those that were skipped.
  uint64_t count() const { return count_; }
  uint64_t skipped() const { return count_ - documents_.size(); }
  /// Logs a warning with the number of skipped documents and the first of them, if there are any.
  void warn_about_skipped() const;
  /// Returns the document's text, decoded into `buffer` if necessary. Throws an error if the file
  /// has changed since it was opened.
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
  void check_documents(bool skip);
  std::string_view bytes_of(const Document& document) const;
  std::string listed(const std::vector<size_t>& invalid) const;

  std::string field_, source_;
  std::vector<File> files_;
  std::vector<Document> documents_;
  std::string invalid_;  // lists the first invalid documents
  uint64_t bytes_ = 0, count_ = 0;
};

}  // namespace dsv3
