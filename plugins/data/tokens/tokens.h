// Prepared token files: dsv3 shards, and .bin files from llm.c and nanoGPT.
#pragma once

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/options.h>
#include <dsv3/support/token_file.h>

namespace dsv3::plugins {

struct TokensOptions {
  std::string path;
  std::vector<std::string> paths;
  std::string validation_path;
  std::string format = "auto";
  int64_t eos = -1;
  std::string split = "document";

  static void describe(OptionSchema<TokensOptions>& s) {
    s.add("path", &TokensOptions::path,
          "a file of token ids, or a folder of .tokens and .bin files")
        .input_path();
    s.add("paths", &TokensOptions::paths,
          "additional files or folders, read in this order after `path`")
        .input_path();
    s.add("validation_path", &TokensOptions::validation_path,
          "file or folder for validation; `path` and `paths` are then used for training only")
        .input_path();
    s.add("format", &TokensOptions::format,
          "file format; auto = dsv3 for .tokens files, llmc for files with llm.c's magic number, "
          "otherwise raw16 (uint16, nanoGPT)")
        .choices({"auto", "dsv3", "llmc", "raw16"});
    s.add(
         "eos", &TokensOptions::eos,
         "token id that ends a document, for files that do not specify it; none = one document per "
         "file")
        .min(-1)
        .max(4294967295)
        .word("none", -1);
    s.add("split", &TokensOptions::split,
          "how to choose the held-out set: document = individual documents by hash, shard = the "
          "last files")
        .choices({"document", "shard"});
    s.check([](const TokensOptions& o) {
      return o.path.empty() && o.paths.empty() ? "data/tokens needs `path` or `paths`" : "";
    });
  }
};

/// The documents in one split of a set of token files.
class TokenDocuments final : public Documents {
 public:
  TokenDocuments(const TokensOptions& options, const DataContext& context);
  int64_t count() const override { return static_cast<int64_t>(documents_.size()); }
  int64_t length(int64_t document) override;
  void read(int64_t document, int64_t offset, std::span<int64_t> out) override;
  std::string fingerprint() const override { return fingerprint_; }
  std::string source() const override { return source_; }

 private:
  struct Place {
    uint32_t file;
    uint64_t begin, end;
  };
  void check_header(const TokenFile& file, const DataContext& context) const;
  void require_same_tokenizer(const TokenFile& file);

  std::vector<TokenFile> files_;
  std::vector<Place> documents_;
  std::string source_, fingerprint_;
  std::pair<std::string, std::string> tokenizer_;  // a file and the tokenizer's digest in it
  int64_t vocab_;
};

class TokensData final : public PackedStream {
 public:
  using Options = TokensOptions;
  TokensData(const Options& options, const DataContext& context)
      : PackedStream(std::make_shared<TokenDocuments>(options, context), context) {}
};

}  // namespace dsv3::plugins
