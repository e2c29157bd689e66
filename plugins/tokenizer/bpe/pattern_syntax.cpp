// Translates regular expressions from Oniguruma's dialect to PCRE2's. Rejects constructs that may
// differ in meaning.
#include <algorithm>
#include <array>

#include <dsv3/sdk/error.h>

#include "pattern.h"
#include "utf8.h"

namespace dsv3::bpe {
namespace {

// White_Space and Oniguruma's word characters, as members of a character class. PCRE2's \s also
// contains U+180E, and its \w does not contain marks.
constexpr const char* kSpace = "\\p{White_Space}";
constexpr const char* kNoSpace = "\\P{White_Space}";
// Oniguruma's \w, determined from the `tokenizers` wheel: alphabetic characters (letters, letter
// numbers, circled and squared letters), marks, decimals, connectors, and Latin-1's superscripts
// and fractions.
#define DSV3_WORD                                                                            \
  "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}\\x{24B6}-\\x{24E9}" \
  "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"
constexpr const char* kWord = DSV3_WORD;
constexpr const char* kWordClass = "[" DSV3_WORD "]";
constexpr const char* kNoWordClass = "[^" DSV3_WORD "]";
#undef DSV3_WORD

constexpr std::array kCategories{"C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo",
                                 "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No",
                                 "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc",
                                 "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs", "Any"};

class Rewriter {
 public:
  Rewriter(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (!done()) {
      const char c = peek();
      if (c == '\\')
        escape(false);
      else if (c == '[')
        character_class();
      else if (c == '(')
        group();
      else if (c == '*' || c == '+' || c == '?')
        quantifier();
      else if (c == '{')
        interval();
      else if (c == '^' || c == '$')
        reject(std::string(1, c), "line anchors");
      else
        copy();
    }
    return out_;
  }

 private:
  bool done() const { return at_ >= in_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  void copy(size_t count = 1) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  [[noreturn]] void reject(const std::string& what, const std::string& why) const {
    throw Error(where_ + ": unsupported construct '" + what + "' (" + why +
                    ") in the regular expression " + std::string(in_),
                ExitCode::data);
  }

  void group() {
    for (std::string_view start : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"})
      if (next_is(start)) return copy(start.size());
    if (peek(1) == '?' || peek(1) == '*') reject(std::string(in_.substr(at_, 4)), "kind of group");
    copy();
  }

  /// Copies a quantifier ?, * or + and its lazy and possessive forms.
  void quantifier() {
    copy();
    if (peek() == '?' || peek() == '+') copy();
    after_quantifier();
  }

  /// Parses an interval {n}, {n,} or {n,m}; the last two may be lazy. In Ruby, {,m} is also an
  /// interval, and a '+' after any interval or a '?' after {n} is a separate quantifier.
  void interval() {
    const size_t close = in_.find('}', at_);
    const std::string text(in_.substr(at_, close == in_.npos ? in_.npos : close - at_ + 1));
    const bool digits = text.size() > 2 && std::isdigit(static_cast<unsigned char>(text[1])) &&
                        text.find_first_not_of("0123456789,", 1) == text.size() - 1;
    if (!digits) reject(text, "brace that is not an interval {n}, {n,} or {n,m}");
    copy(text.size());
    if (peek() == '?' && text.find(',') != text.npos) copy();
    after_quantifier();
  }

  void after_quantifier() {
    if (peek() == '?' || peek() == '+' || peek() == '*' || (peek() == '{' && !done()))
      reject(std::string(1, peek()), "quantifier of a quantifier");
  }

  void escape(bool in_class) {
    const char c = peek(1);
    switch (c) {
      case 's':
        return put(2, kSpace);
      case 'S':
        return put(2, kNoSpace);
      case 'w':
        return put(2, in_class ? kWord : kWordClass);
      case 'W':
        if (in_class) reject("\\W", "in a class");
        return put(2, kNoWordClass);
      case 'd':
        return put(2, "\\p{Nd}");
      case 'D':
        return put(2, "\\P{Nd}");
      case 'v':
        return put(2, "\\x0B");
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        return copy(2);
      case 'p':
      case 'P':
        return property();
      case 'u':
        return code_unit(4);
      case 'x':
        return peek(2) == '{' ? braced_code() : code_unit(2);
      default:
        break;
    }
    if (c == '\0' || std::isalnum(static_cast<unsigned char>(c)) || static_cast<signed char>(c) < 0)
      reject(std::string("\\") + c, "escape");
    copy(2);
  }

  void put(size_t consumed, std::string_view text) {
    at_ += consumed;
    out_ += text;
  }

  /// \uHHHH and \xHH.
  void code_unit(size_t digits) {
    const std::string_view hex = in_.substr(std::min(at_ + 2, in_.size()), digits);
    if (hex.size() != digits || !all_hex(hex)) reject("\\" + std::string(1, peek(1)), "escape");
    const std::string text = "\\x{" + std::string(hex) + "}";
    if (digits == 2 && hex[0] >= '8') reject("\\x" + std::string(hex), "byte of a character");
    put(2 + digits, text);
  }

  void braced_code() {
    const size_t close = in_.find('}', at_);
    if (close == in_.npos || !all_hex(in_.substr(at_ + 3, close - at_ - 3)))
      reject("\\x{", "escape");
    copy(close - at_ + 1);
  }

  static bool all_hex(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isxdigit(c); });
  }

  /// General categories have the same meaning in both dialects. A script name means Script in
  /// Oniguruma, but Script_Extensions in PCRE2's short form.
  void property() {
    const size_t close = in_.find('}', at_);
    if (peek(2) != '{' || close == in_.npos) reject(std::string(in_.substr(at_, 3)), "property");
    std::string name(in_.substr(at_ + 3, close - at_ - 3));
    const bool inverted = name.starts_with('^');
    if (inverted) name.erase(0, 1);
    const bool category =
        std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
    const bool is_p = (peek(1) == 'p') != inverted;
    put(close - at_ + 1,
        std::string(is_p ? "\\p{" : "\\P{") + (category ? "" : "sc:") + name + "}");
  }

  void character_class() {
    copy();
    if (peek() == '^') copy();
    if (peek() == ']') reject("[]", "class that starts with ']'");
    while (peek() != ']') {
      if (done()) reject("[", "class without end");
      if (peek() == '[') reject("[", "class in a class");
      if (next_is("&&")) reject("&&", "class intersection");
      if (peek() == '\\')
        escape(true);
      else
        copy();
    }
    copy();
  }

  std::string_view in_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string to_pcre2(std::string_view pattern, const std::string& where) {
  if (valid_prefix(pattern) != pattern.size())
    throw Error(where + ": the regular expression is not UTF-8", ExitCode::data);
  return Rewriter(pattern, where).run();
}

}  // namespace dsv3::bpe
