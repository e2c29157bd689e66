// Byte-level BPE from a Hugging Face tokenizer.json.
#pragma once

#include <memory>
#include <mutex>

#include <dsv3/sdk/options.h>
#include <dsv3/sdk/tokenizer.h>

#include "tokenizer_json.h"

namespace dsv3::plugins {

struct BpeOptions {
  std::string file;
  std::string eos;

  static void describe(OptionSchema<BpeOptions>& s) {
    s.add("file", &BpeOptions::file, "a Hugging Face tokenizer.json with byte-level BPE")
        .required()
        .input_path();
    s.add("eos", &BpeOptions::eos,
          "token that separates documents; empty = the first of <|endoftext|>, <|end_of_text|>, "
          "<｜end▁of▁sentence｜>, </s> that the file contains");
  }
};

/// Encodes like the `tokenizers` library's encode(text, add_special_tokens=False), for code points
/// assigned in PCRE2's Unicode version. Bytes that are not UTF-8, which that library rejects, are
/// encoded byte by byte: every maximal run of such bytes is a separate word, and the text before
/// and after it is encoded separately.
class Bpe final : public Tokenizer {
 public:
  using Options = BpeOptions;
  Bpe(const Options& options, const TokenizerContext& context);
  ~Bpe() override;

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  std::string token_bytes(int32_t id) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(definition_.bytes.size()); }
  int32_t eos_id() const override { return eos_; }
  std::string digest() const override { return definition_.digest; }
  std::map<std::string, std::string> files() const override;

 private:
  struct Scratch;
  class Borrowed;
  void encode_valid(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void encode_ordinary(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;
  int32_t find_eos(const Options& options) const;

  std::string file_;
  bpe::Definition definition_;
  bpe::AddedTokens raw_tokens_;         // found before normalisation
  bpe::AddedTokens normalized_tokens_;  // found after it
  int32_t eos_;
  mutable std::mutex mutex_;
  // Guarded by mutex_. Contains at most one Scratch per thread that has called encode().
  mutable std::vector<std::unique_ptr<Scratch>> idle_;
};

}  // namespace dsv3::plugins
