// Cuts text into the words that merges work in: Split, Digits and ByteLevel of a tokenizer.json.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pattern.h"

namespace dsv3::bpe {

/// What becomes of a match: a word of its own; dropped; joined to the word before or after; joined
/// to neighbouring matches.
enum class Behavior { isolated = 1, removed, merged_with_previous, merged_with_next, contiguous };

struct Split {
  Pattern pattern;
  Behavior behavior = Behavior::isolated;
  bool invert = false;  ///< matches and what lies between them change places
};

/// Reused buffers of one thread.
struct SplitScratch {
  std::vector<std::string_view> words;  ///< the result; views into the text or into `made`
  std::vector<std::string_view> before;
  std::vector<std::pair<Span, bool>> parts;
  std::deque<std::string> made;
  MatchScratch match;
};

/// A list of splits, then ByteLevel, whose mapping of bytes to characters is not carried out:
/// merges work on bytes.
struct PreTokenizer {
  std::vector<Split> splits;
  bool add_prefix_space = false;    ///< put a space before words that have none
  std::optional<Split> byte_level;  ///< ByteLevel's own expression (use_regex)

  /// Cuts valid UTF-8 `text` into scratch.words.
  void operator()(std::string_view text, SplitScratch& scratch) const;
};

/// The expression built into ByteLevel (GPT-2's), in PCRE2's syntax.
extern const char* const kByteLevelExpression;

}  // namespace dsv3::bpe
