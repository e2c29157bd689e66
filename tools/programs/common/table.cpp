#include "common/table.h"

#include <algorithm>

#include <dsv3/runtime/printable.h>

namespace {

bool is_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

bool is_absent(const std::string& cell) {
  return cell.empty() || cell == "-";
}

bool is_number(const std::string& cell) {
  const size_t sign = cell.starts_with('-') ? 1 : 0;
  return cell == "NaN" || cell.substr(sign) == "Infinity" ||
         (cell.size() > sign && cell[sign] >= '0' && cell[sign] <= '9');
}

// Whether the cells below the header are numbers, as far as they are present.
bool is_numeric(const std::vector<Row>& rows, size_t column) {
  bool found = false;
  for (size_t i = 1; i < rows.size(); ++i) {
    const std::string& cell = rows[i].at(column);
    if (!is_number(cell) && !is_absent(cell)) return false;
    found = found || is_number(cell);
  }
  return found;
}

std::vector<Row> printable(std::vector<Row> rows) {
  for (Row& row : rows)
    for (std::string& cell : row) cell = dsv3::printable_line(cell);
  return rows;
}

std::string replaced(const std::string& text, char from, std::string_view to) {
  std::string result;
  for (const char c : text)
    if (c == from)
      result += to;
    else
      result += c;
  return result;
}

}  // namespace

size_t width_of(std::string_view text) {
  return text.size() - size_t(std::ranges::count_if(text, is_continuation));
}

std::string cut_to(const std::string& text, size_t width) {
  if (width_of(text) <= width || width == 0) return text;
  size_t end = 0;
  for (size_t characters = 0; end < text.size(); ++end)
    if (!is_continuation(text[end]) && characters++ == width - 1) break;
  return text.substr(0, end) + "…";
}

std::string text_table(const std::vector<Row>& unescaped) {
  const std::vector<Row> rows = printable(unescaped);
  std::vector<size_t> width(rows.at(0).size());
  std::vector<bool> right(width.size());
  for (size_t i = 0; i < width.size(); ++i) {
    for (const Row& row : rows) width[i] = std::max(width[i], width_of(row.at(i)));
    right[i] = is_numeric(rows, i);
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(width[i] - width_of(row[i]), ' ');
      line += (i ? "  " : "") + (right[i] ? padding + row[i] : row[i] + padding);
    }
    text += line.erase(line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string markdown_table(const std::vector<Row>& unescaped) {
  std::string text;
  for (const Row& row : printable(unescaped)) {
    const bool header = text.empty();
    std::string line = "|", rule = "|";
    for (const std::string& cell : row) {
      // Text in cells is not markup.
      std::string plain = replaced(replaced(cell, '&', "&amp;"), '<', "&lt;");
      for (const char markup : {'\\', '|', '*', '`', '['})
        plain = replaced(plain, markup, std::string("\\") + markup);
      line += " " + plain + " |";
      rule += "---|";
    }
    text += line + "\n" + (header ? rule + "\n" : "");
  }
  return text;
}

std::string csv_table(const std::vector<Row>& rows) {
  std::string text;
  for (const Row& row : rows)
    for (size_t i = 0; i < row.size(); ++i) {
      const bool quoted = row[i].find_first_of(",\"\r\n") != std::string::npos;
      text += quoted ? '"' + replaced(row[i], '"', "\"\"") + '"' : row[i];
      text += i + 1 < row.size() ? "," : "\n";
    }
  return text;
}
