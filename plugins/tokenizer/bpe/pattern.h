// The regular expressions in a tokenizer.json, matched with PCRE2. They are written in Oniguruma's
// (Ruby) dialect. Constructs that PCRE2 spells differently are rewritten (\s, \w, scripts).
// Constructs that cannot be translated are rejected. Character properties are those of PCRE2's
// Unicode version (14 in PCRE2 10.42).
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace dsv3::bpe {

/// Rewrites `pattern` for PCRE2. Throws a dsv3::Error that names `where` (a path in the JSON) and
/// the construct.
std::string to_pcre2(std::string_view pattern, const std::string& where);

/// Buffers for matching. Not thread-safe; use one per thread.
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

/// A byte range.
struct Span {
  size_t begin = 0, end = 0;
};

/// A compiled expression that never matches the empty string. Thread-safe.
class Pattern {
 public:
  /// `expression` is in PCRE2's syntax. Throws a dsv3::Error that names `where`.
  Pattern(const std::string& expression, const std::string& where);
  static Pattern literal(const std::string& text, const std::string& where);

  /// Finds the first match in valid UTF-8 `text` at or after byte `from`. Returns false if there is
  /// none.
  bool find(std::string_view text, size_t from, Span& match, MatchScratch& scratch) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace dsv3::bpe
