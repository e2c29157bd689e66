// Regular expressions of a tokenizer.json, matched with PCRE2.
//
// tokenizer.json holds expressions in Oniguruma's (Ruby) dialect. Those of its constructs that
// PCRE2 spells or reads otherwise are rewritten (\s, \w, scripts), and those where the two differ
// in meaning are refused. Characters have the properties of PCRE2's Unicode version (14 in
// PCRE2 10.42).
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace dsv3::bpe {

/// `pattern` rewritten for PCRE2; throws dsv3::Error naming `where` (a path in the JSON) and the
/// construct.
std::string to_pcre2(std::string_view pattern, const std::string& where);

/// What matching needs to write to: one a thread.
class MatchScratch {
 public:
  MatchScratch();
  ~MatchScratch();
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;

 private:
  friend class Pattern;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// A stretch of bytes.
struct Span {
  size_t begin = 0, end = 0;
};

/// A compiled expression that never matches the empty string. Thread-safe.
class Pattern {
 public:
  /// `expression` in PCRE2's syntax; throws dsv3::Error naming `where`.
  Pattern(const std::string& expression, const std::string& where);
  static Pattern literal(const std::string& text, const std::string& where);

  /// First match in valid UTF-8 `text` at or behind byte `from`; false = none.
  bool find(std::string_view text, size_t from, Span& match, MatchScratch& scratch) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace dsv3::bpe
