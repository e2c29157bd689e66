#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include <dsv3/runtime/printable.h>

namespace dsv3 {
namespace {

constexpr size_t kShortest = 4;  // shorter values are part of too many words
// A shorter value is only replaced where it is a word, and is not hidden if it is a number.
constexpr size_t kUnmistakable = 8;

// Ranges of code points to escape.
constexpr std::array<std::pair<uint32_t, uint32_t>, 9> kUnprintable{{{0x00, 0x1f},
                                                                     {0x7f, 0x9f},
                                                                     {0x61c, 0x61c},
                                                                     {0x200b, 0x200b},
                                                                     {0x200e, 0x200f},
                                                                     {0x2028, 0x202e},
                                                                     {0x2060, 0x206f},
                                                                     {0xfeff, 0xfeff},
                                                                     {0xfff9, 0xfffb}}};

struct Character {
  size_t length;  // in bytes; 1 for a byte that is not part of a character
  uint32_t code;
  bool valid;
};

// The number of bytes of the UTF-8 character that starts with `first`; 0 = no character does.
size_t length_from(unsigned char first) {
  return first < 0x80   ? 1
         : first < 0xc2 ? 0
         : first < 0xe0 ? 2
         : first < 0xf0 ? 3
         : first < 0xf5 ? 4
                        : 0;
}

// Decodes the character at the start of `text`, which must not be empty.
Character next_character(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const Character invalid{1, first, false};
  const size_t length = length_from(first);
  if (length == 1) return {1, first, true};
  if (length == 0 || text.size() < length) return invalid;
  uint32_t code = first & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte & 0xc0) != 0x80) return invalid;
    code = code << 6 | (byte & 0x3f);
  }
  constexpr uint32_t smallest[]{0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (code < smallest[length] || code > 0x10ffff || surrogate) return invalid;
  return {length, code, true};
}

std::string escape(const Character& character, bool keeps_lines, std::string_view bytes) {
  constexpr char kHex[] = "0123456789abcdef";
  const uint32_t code = character.code;
  if (!character.valid) return std::string("\\x") + kHex[code >> 4] + kHex[code & 15];
  if (code == '\n' || code == '\t')
    return keeps_lines ? std::string(bytes) : code == '\n' ? "\\n" : "\\t";
  const bool unprintable = std::ranges::any_of(
      kUnprintable, [&](const auto& range) { return range.first <= code && code <= range.second; });
  if (!unprintable) return std::string(bytes);
  return std::string("\\u") + kHex[code >> 12] + kHex[code >> 8 & 15] + kHex[code >> 4 & 15] +
         kHex[code & 15];
}

std::string escape_all(std::string_view text, bool keeps_lines) {
  std::string out;
  while (!text.empty()) {
    const Character character = next_character(text);
    out += escape(character, keeps_lines, text.substr(0, character.length));
    text.remove_prefix(character.length);
  }
  return out;
}

bool is_number_or_boolean(const std::string& value) {
  double number = 0;
  const char* end = value.data() + value.size();
  return value == "true" || value == "false" ||
         std::from_chars(value.data(), end, number).ptr == end;
}

bool is_word_character(std::string_view text, size_t at) {
  return at < text.size() && std::isalnum(static_cast<unsigned char>(text[at]));
}

void replace_all(std::string& text, const std::string& value, const std::string& replacement) {
  for (size_t at = text.find(value); at != text.npos; at = text.find(value, at)) {
    const bool inside_word =
        is_word_character(text, at - 1) || is_word_character(text, at + value.size());
    if (inside_word && value.size() < kUnmistakable) {
      at += value.size();
    } else {
      text.replace(at, value.size(), replacement);
      at += replacement.size();
    }
  }
}

struct LongestFirst {
  bool operator()(const std::string& a, const std::string& b) const {
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  }
};

// Hidden values and what replaces them.
struct Hidden {
  std::mutex mutex;
  std::map<std::string, std::string, LongestFirst> values;
};

// Never destroyed, because plugins and threads may log while the process exits.
Hidden& hidden() {
  static Hidden& instance = *new Hidden;
  return instance;
}

}  // namespace

std::string escaped(std::string_view text) {
  return escape_all(text, true);
}

std::string printable(std::string_view text) {
  return escaped(without_secrets(std::string(text)));
}

std::string printable_line(std::string_view text) {
  return escape_all(without_secrets(std::string(text)), false);
}

std::string indented(std::string text) {
  for (size_t at = text.find('\n'); at != text.npos; at = text.find('\n', at + 1))
    if (text.compare(at + 1, 1, "\n") != 0 && text.compare(at + 1, 2, "  ") != 0)
      text.insert(at + 1, "  ");
  return text;
}

size_t incomplete_character(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0) == 0x80) continue;
    return length_from(byte) > back ? back : 0;
  }
  return 0;
}

void hide_value(const std::string& variable, const std::string& value) {
  hide_text(value, "${env:" + variable + "}");
}

void hide_text(const std::string& value, const std::string& replacement) {
  if (value.size() < kShortest) return;
  if (value.size() < kUnmistakable && is_number_or_boolean(value)) return;
  Hidden& all = hidden();
  const std::lock_guard lock(all.mutex);
  all.values.emplace(value, replacement);
}

std::string without_secrets(std::string text) {
  Hidden& all = hidden();
  const std::lock_guard lock(all.mutex);
  for (const auto& [value, replacement] : all.values) replace_all(text, value, replacement);
  return text;
}

std::string shell_quoted(const std::string& text) {
  constexpr const char* kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/@%+=:,";
  if (!text.empty() && text.find_first_not_of(kPlain) == text.npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

}  // namespace dsv3
