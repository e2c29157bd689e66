// Text files, tokenised when first needed and packed with document ids.
#pragma once

#include <functional>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/options.h>
#include <dsv3/support/text_files.h>

namespace dsv3::plugins {

struct TextOptions {
  std::string path;
  std::vector<std::string> paths;
  std::string documents = TextFormat{}.documents;
  std::string field = TextFormat{}.field;
  std::string on_error = TextFormat{}.on_error;

  static void describe(OptionSchema<TextOptions>& s) {
    s.add("path", &TextOptions::path, "a .txt or .jsonl file, or a folder of them").input_path();
    s.add("paths", &TextOptions::paths,
          "additional files or folders, read in this order after `path`")
        .input_path();
    s.needs_tokenizer();
    s.add("documents", &TextOptions::documents, "what separates the documents in a .txt file")
        .choices({"blank_line", "line", "file"});
    s.add("field", &TextOptions::field,
          "JSON field that contains the text in each line of a .jsonl file");
    s.add("on_error", &TextOptions::on_error,
          "what to do with invalid documents, such as bytes that are not UTF-8 or lines that are "
          "not JSON: fail = list them and stop, skip = leave them out and count them")
        .choices({"fail", "skip"});
    s.check([](const TextOptions& o) {
      return o.path.empty() && o.paths.empty() ? "data/text needs `path` or `paths`" : "";
    });
  }
};

/// The documents in one split of a set of text files. Caches tokens in memory up to a limit.
/// Documents beyond the limit are tokenised again in every epoch.
class TextDocuments final : public Documents {
 public:
  TextDocuments(const TextOptions& options, const DataContext& context);
  int64_t count() const override { return static_cast<int64_t>(indices_.size()); }
  int64_t length(int64_t document) override;
  void read(int64_t document, int64_t offset, std::span<int64_t> out) override;
  std::string fingerprint() const override { return fingerprint_; }
  uint64_t hash(int64_t document) const override;
  nlohmann::json state() const override { return state_; }
  void load_state(const nlohmann::json& state) override;
  std::string source() const override { return files_.source(); }

 private:
  void select(const std::function<bool(const TextFiles::Document&)>& selected);
  const std::vector<int32_t>& tokens(int64_t document);

  TextFiles files_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<size_t> indices_;  // documents in this split, as indices into files_.documents()
  std::string fingerprint_;
  nlohmann::json state_;
  bool warns_;                    // about skipped documents, at the next read
  bool keeps_selection_ = false;  // warn about it at the next read
  std::vector<std::vector<int32_t>> cache_;
  std::vector<bool> cached_;
  int64_t cached_tokens_ = 0;
  int64_t current_ =
      -1;  // document whose tokens are in current_tokens_ because they are not cached
  std::vector<int32_t> current_tokens_;
  std::string buffer_;
};

class TextData final : public PackedStream {
 public:
  using Options = TextOptions;
  TextData(const Options& options, const DataContext& context)
      : PackedStream(std::make_shared<TextDocuments>(options, context), context) {}
};

}  // namespace dsv3::plugins
