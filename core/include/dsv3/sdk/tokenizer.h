// Interface for tokenizers.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// Thread-safe: several threads may call the const members concurrently.
class Tokenizer : public Pluggable {
 public:
  ~Tokenizer() override;
  /// Returns the ids of `text` (any bytes), without an end-of-text id.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// Returns the concatenated bytes of `ids`, which may start or end within a UTF-8 character.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  /// Returns the bytes of one id. For a special token, this is its text.
  virtual std::string token_bytes(int32_t id) const = 0;
  virtual int64_t vocab_size() const = 0;
  /// End-of-text id, which separates documents; -1 = none.
  virtual int32_t eos_id() const = 0;
  /// Hex digest of everything that determines the ids. Tokenizers with the same digest return the
  /// same ids for every text.
  virtual std::string digest() const = 0;
  /// Returns the files from which Hugging Face's libraries load the same tokenizer, by name
  /// (tokenizer.json, tokenizer_config.json), for exports; empty = none.
  virtual std::map<std::string, std::string> files() const { return {}; }
};

/// What a tokenizer plugin receives besides its options.
struct TokenizerContext {};

}  // namespace dsv3
