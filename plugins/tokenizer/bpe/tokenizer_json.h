// Reads a Hugging Face tokenizer.json. Throws an error with the path in the JSON for anything that
// this plugin does not support, and ignores nothing silently.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "added_tokens.h"
#include "merges.h"
#include "normalizer.h"
#include "pre_tokenizer.h"

namespace dsv3::bpe {

struct Definition {
  /// Maps the bytes of each token to its id. With ignore_merges, words that are tokens are encoded
  /// with this map.
  std::unordered_map<std::string, int32_t> vocab;
  std::vector<std::string> bytes;  ///< indexed by id; "" for unused ids
  std::unordered_map<std::string, int32_t>
      by_text;  ///< all ids, keyed by the token's text in the file
  Merges merges;
  bool ignore_merges = false;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::vector<AddedToken> added;
  std::string digest;  ///< SHA-256 of all fields above
};

/// Throws a dsv3::Error (ExitCode::data) that contains `file` and the path in the JSON.
Definition read_tokenizer_json(const std::string& file);

}  // namespace dsv3::bpe
