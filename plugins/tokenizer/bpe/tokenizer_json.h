// Reads a Hugging Face tokenizer.json. What it asks for and this plugin does not do is an error
// that names the place in the JSON; nothing is passed over in silence.
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
  std::unordered_map<std::string, int32_t>
      vocab;                       ///< by bytes, for words taken whole (ignore_merges)
  std::vector<std::string> bytes;  ///< of each id; "" for ids that are not given out
  std::unordered_map<std::string, int32_t> by_text;  ///< every token by its text in the file
  Merges merges;
  bool ignore_merges = false;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::vector<AddedToken> added;
  std::string digest;  ///< SHA-256 of all of the above
};

/// Throws dsv3::Error (ExitCode::data) naming `file` and the path in it.
Definition read_tokenizer_json(const std::string& file);

}  // namespace dsv3::bpe
