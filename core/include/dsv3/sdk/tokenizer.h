// Interface of tokenizers.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

/// Thread-safe: several threads may call the const members at once.
class Tokenizer {
 public:
  virtual ~Tokenizer();
  /// Ids of `text` (any bytes); no end-of-text id is added.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// Concatenated bytes of `ids`; may cut a UTF-8 character at the ends.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  /// Bytes of one id; special tokens give their text.
  virtual std::string token_bytes(int32_t id) const = 0;
  virtual int64_t vocab_size() const = 0;
  /// Id put between documents; -1 = none.
  virtual int32_t eos_id() const = 0;
  /// Hex digest of all that decides the ids: equal digest = equal ids for every text.
  virtual std::string digest() const = 0;
  /// Files, by name, from which Hugging Face's libraries make the same tokenizer (tokenizer.json,
  /// tokenizer_config.json), for exports; empty: there are none.
  virtual std::map<std::string, std::string> files() const { return {}; }
};

/// What a tokenizer plugin is built with, next to its options.
struct TokenizerContext {};

}  // namespace dsv3
