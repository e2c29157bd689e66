#include "pre_tokenizer.h"

#include <algorithm>

namespace dsv3::bpe {
namespace {

/// Consecutive ranges that cover the text, and whether each is treated as a match (see
/// Split::invert).
using Parts = std::vector<std::pair<Span, bool>>;

void find_parts(std::string_view text, const Split& split, MatchScratch& scratch, Parts& parts) {
  parts.clear();
  size_t at = 0;
  Span match;
  while (at < text.size() && split.pattern.find(text, at, match, scratch)) {
    if (at < match.begin) parts.push_back({{at, match.begin}, split.invert});
    parts.push_back({match, !split.invert});
    at = match.end;
  }
  if (at < text.size()) parts.push_back({{at, text.size()}, split.invert});
}

/// Joins a range to the one before it if `joins(matched, previous)` is true.
template <class Joins>
void join(Parts& parts, Joins joins) {
  size_t count = 0;
  bool previous = false;
  for (const auto& [span, matched] : parts) {
    if (count > 0 && joins(matched, previous))
      parts[count - 1].first = {std::min(parts[count - 1].first.begin, span.begin),
                                std::max(parts[count - 1].first.end, span.end)};
    else
      parts[count++].first = span;
    previous = matched;
  }
  parts.resize(count);
}

void apply_behavior(Parts& parts, Behavior behavior) {
  const auto merged = [](bool matched, bool previous) { return matched && !previous; };
  switch (behavior) {
    case Behavior::isolated:
      break;
    case Behavior::removed:
      std::erase_if(parts, [](const auto& part) { return part.second; });
      break;
    case Behavior::contiguous:
      join(parts, [](bool matched, bool previous) { return matched == previous; });
      break;
    case Behavior::merged_with_previous:
      join(parts, merged);
      break;
    case Behavior::merged_with_next:
      std::reverse(parts.begin(), parts.end());
      join(parts, merged);
      std::reverse(parts.begin(), parts.end());
      break;
  }
}

void split_words(const Split& split, SplitScratch& s) {
  std::swap(s.words, s.unsplit);
  s.words.clear();
  for (std::string_view word : s.unsplit) {
    find_parts(word, split, s.match, s.parts);
    apply_behavior(s.parts, split.behavior);
    for (const auto& [span, matched] : s.parts)
      s.words.push_back(word.substr(span.begin, span.end - span.begin));
  }
}

}  // namespace

const char* const kByteLevelExpression =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+|"
    "\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+";

void PreTokenizer::operator()(std::string_view text, SplitScratch& scratch) const {
  scratch.words.assign(1, text);
  scratch.prefixed.clear();
  for (const Split& split : splits) split_words(split, scratch);
  if (add_prefix_space)
    for (std::string_view& word : scratch.words)
      if (!word.starts_with(' ')) word = scratch.prefixed.emplace_back(" " + std::string(word));
  if (byte_level) split_words(*byte_level, scratch);
}

}  // namespace dsv3::bpe
