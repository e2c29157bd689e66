// Splits text into words; merges never cross word boundaries. Implements Split, Digits and
// ByteLevel from tokenizer.json.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pattern.h"

namespace dsv3::bpe {

/// What happens to a match: it becomes a word, is removed, or is joined to the word before it, to
/// the word after it, or to adjacent matches.
enum class Behavior { isolated = 1, removed, merged_with_previous, merged_with_next, contiguous };

struct Split {
  Pattern pattern;
  Behavior behavior = Behavior::isolated;
  bool invert = false;  ///< swaps the roles of matches and the text between them
};

/// Buffers that one thread reuses between calls.
struct SplitScratch {
  std::vector<std::string_view> words;  ///< the result; views of the text or of `prefixed`
  std::vector<std::string_view> unsplit;
  std::vector<std::pair<Span, bool>> parts;
  std::deque<std::string> prefixed;
  MatchScratch match;
};

/// Applies a list of splits, then ByteLevel. Skips ByteLevel's mapping of bytes to characters,
/// because merges work on bytes.
struct PreTokenizer {
  std::vector<Split> splits;
  bool add_prefix_space = false;    ///< add a space before words that start without one
  std::optional<Split> byte_level;  ///< ByteLevel's built-in expression (use_regex)

  /// Splits valid UTF-8 `text` into scratch.words.
  void operator()(std::string_view text, SplitScratch& scratch) const;
};

/// ByteLevel's built-in expression (GPT-2's), in PCRE2's syntax.
extern const char* const kByteLevelExpression;

}  // namespace dsv3::bpe
