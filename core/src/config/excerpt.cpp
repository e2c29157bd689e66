#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>

#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/printable.h>

#include "config/diagnostics.h"

namespace dsv3::config {
namespace {

constexpr size_t kMaxLineShown = 160;      // maximum number of bytes of a source line to print
constexpr size_t kMaxFileRead = 64 << 20;  // maximum number of bytes to read from a file

bool starts_character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
}

// Parses a positive integer. Returns 0 for anything else.
int number_in(std::string_view text) {
  int number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && stop == text.data() + text.size() ? number : 0;
}

// Finds the last FILE:LINE:COLUMN in one line of an error message, which locates the innermost
// cause.
std::optional<Origin> last_place(std::string_view text) {
  for (size_t second = text.rfind(':'); second != text.npos && second > 0;
       second = text.rfind(':', second - 1)) {
    const size_t first = text.rfind(':', second - 1);
    if (first == text.npos) return std::nullopt;
    const size_t end = std::min(text.find_first_not_of("0123456789", second + 1), text.size());
    const int line = number_in(text.substr(first + 1, second - first - 1));
    const int column = number_in(text.substr(second + 1, end - second - 1));
    const size_t begin = text.find_last_of(" (", first) + 1;  // 0 if not found (npos + 1)
    if (line > 0 && column > 0 && begin < first)
      return Origin{std::string(text.substr(begin, first - begin)), line, column};
  }
  return std::nullopt;
}

// Number of bytes in the option value or name at `column`.
size_t word_length(std::string_view line, int column) {
  const size_t begin = static_cast<size_t>(column) - 1;
  if (begin >= line.size()) return 1;
  return std::min(line.find_first_of(" \t,;:=[]{}()\"'#", begin), line.size()) - begin;
}

// Whether `lines` starts with an excerpt: a source line followed by a line with "^~~~".
bool starts_with_excerpt(std::string_view lines) {
  const size_t second = lines.find('\n');
  if (second == lines.npos || !lines.starts_with("  ")) return false;
  const size_t caret = lines.find_first_not_of(" |", second + 1);
  return caret != lines.npos && lines[caret] == '^';
}

// Whether `line` starts a problem, such as FILE:LINE:COLUMN: error: ..., or a list of problems.
bool is_problem(std::string_view line) {
  return line.find(": error: ") != line.npos || line == "missing or unusable inputs:";
}

// Whether `line` is a detail or a note, for which no excerpt is shown.
bool is_detail(std::string_view line) {
  return line.starts_with("  ") && !line.starts_with("  requested by ");
}

}  // namespace

std::string_view line_of(std::string_view text, int line) {
  for (int i = 1; i < line; ++i) {
    const size_t end = text.find('\n');
    if (end == text.npos) return {};
    text.remove_prefix(end + 1);
  }
  return text.substr(0, text.find('\n'));
}

std::string excerpt(std::string_view whole_line, int number, int column, size_t length) {
  std::string line(whole_line);
  if (line.ends_with('\r')) line.pop_back();
  size_t at = std::min<size_t>(std::max(column, 1) - 1, line.size());
  if (line.size() > kMaxLineShown) {  // show only a window around the column
    size_t begin = at > kMaxLineShown / 2 ? at - kMaxLineShown / 2 : 0;
    // Do not start inside a UTF-8 character, which has at most four bytes.
    for (int i = 0; i < 3 && begin > 0 && !starts_character(line[begin]); ++i) --begin;
    line = line.substr(begin, kMaxLineShown);
    line.resize(line.size() - incomplete_character(line));
    at -= begin;
  }
  std::ranges::replace(line, '\t', ' ');
  const size_t end = std::min(line.size(), at + std::max<size_t>(length, 1));
  const std::string before = printable_line(line.substr(0, at)),
                    marked = printable_line(line.substr(at, end - at)),
                    after = printable_line(line.substr(end));
  const size_t indent = std::ranges::count_if(before, starts_character),
               width = std::ranges::count_if(marked, starts_character);
  const std::string digits = number ? std::to_string(number) : "";
  const std::string margin = number ? std::string(digits.size() + 1, ' ') + "| " : "";
  return "\n  " + (number ? digits + " | " : "") + before + marked + after + "\n  " + margin +
         std::string(indent, ' ') + "^" + std::string(width > 1 ? width - 1 : 0, '~');
}

std::string excerpt_of(const Origin& origin) {
  const std::string& text = origin.setting;
  if (!text.empty()) return excerpt(text, 0, origin.column, word_length(text, origin.column));
  std::error_code error;
  if (origin.line == 0 || !std::filesystem::is_regular_file(origin.source, error)) return "";
  std::ifstream file(origin.source, std::ios::binary);
  std::string line;
  size_t read = 0;
  for (int i = 0; i < origin.line; ++i) {
    if (read > kMaxFileRead || !std::getline(file, line)) return "";
    read += line.size() + 1;
  }
  return excerpt(line, origin.line, origin.column, word_length(line, origin.column));
}

}  // namespace dsv3::config

namespace dsv3 {

std::string error_text(const std::string& what) {
  const std::string safe = printable(what);
  const bool has_problems = config::is_problem(safe.substr(0, safe.find('\n')));
  std::string text = has_problems ? "" : "error: ";
  std::string_view rest = safe;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    // Text from outside that contains a newline must not look like another error.
    const bool continues =
        line.data() != safe.data() && !(has_problems && config::is_problem(line));
    if (continues && !line.empty() && !line.starts_with("  ")) text += "  ";
    text.append(line);
    if (!config::is_detail(line) && !config::starts_with_excerpt(rest))
      if (const auto place = config::last_place(line)) text += config::excerpt_of(*place);
    if (!rest.empty()) text += '\n';
  }
  return text;
}

}  // namespace dsv3
