#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/suggest.h>

#include "config/values.h"

namespace dsv3 {
namespace {

using Row = std::vector<std::string>;  // the first row is the header

// The shortest text that parses to the same number: 0.0003, 10000, 1e-6.
std::string number_text(double value) {
  if (std::abs(value) < 1e15 && value == std::floor(value))
    return std::to_string(static_cast<int64_t>(value));
  std::array<char, 32> buffer;
  char* const end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                  std::abs(value) < 1e-4 ? std::chars_format::scientific
                                                         : std::chars_format::fixed)
                        .ptr;
  std::string shortest(buffer.data(), end);
  if (const size_t zero = shortest.find("e-0"); zero != std::string::npos)
    shortest.erase(zero + 2, 1);
  return shortest;
}

std::string text(const OptionValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return number_text(*number);
  if (const auto* numbers = std::get_if<std::vector<double>>(&value)) {
    std::vector<std::string> texts;
    for (const double number : *numbers) texts.push_back(number_text(number));
    return "[" + comma_list(texts) + "]";
  }
  return value == OptionValue(std::string()) ? "\"\"" : config::value_text(value);
}

std::string default_text(const OptionSpec& spec) {
  if (spec.required) return "(required)";
  if (std::string word = config::word_of(spec, spec.default_value); !word.empty()) return word;
  return text(spec.default_value);
}

std::string values_text(const OptionSpec& spec) {
  std::string range;
  if (spec.min && spec.max)
    range = number_text(*spec.min) + " to " + number_text(*spec.max);
  else if (spec.min)
    range = "at least " + number_text(*spec.min);
  else if (spec.max)
    range = "at most " + number_text(*spec.max);
  for (const std::string& choice : spec.choices) range += (range.empty() ? "" : ", ") + choice;
  for (const auto& [word, value] : spec.words) range += (range.empty() ? "" : " or ") + word;
  if (!spec.unset_word.empty()) range += (range.empty() ? "" : " or ") + spec.unset_word;
  return range;
}

std::string as_markdown(const std::vector<Row>& rows) {
  std::string out;
  for (size_t row = 0; row < rows.size(); ++row) {
    for (size_t column = 0; column < rows[row].size(); ++column) {
      std::string cell = rows[row][column];
      for (size_t at = 0; (at = cell.find('|', at)) != std::string::npos; at += 2)
        cell.insert(at, "\\");
      const bool code =
          row > 0 && !cell.empty() &&
          (column == 0 || (column == 2 && rows[0][2] == "default" && cell != "(required)"));
      out += code ? "| `" + cell + "` " : "| " + cell + (cell.empty() ? "" : " ");
    }
    out += "|\n";
    if (row > 0) continue;
    for (size_t column = 0; column < rows[row].size(); ++column) out += "|---";
    out += "|\n";
  }
  return out;
}

std::string as_text(const std::vector<Row>& rows) {
  std::vector<size_t> width(rows.front().size());
  for (const Row& row : rows)
    for (size_t column = 0; column < row.size(); ++column)
      width[column] = std::max(width[column], row[column].size());
  std::string out;
  for (const Row& row : rows) {
    std::string line;
    for (size_t column = 0; column < row.size(); ++column)
      line += row[column] + std::string(width[column] - row[column].size() + 2, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string metrics_table(const Schema& schema, bool markdown) {
  if (schema.metrics.empty()) return "";
  std::vector<Row> rows{{"metric", "unit", "meaning"}};
  for (const MetricSpec& metric : schema.metrics)
    rows.push_back({metric.name, metric.unit, metric.doc});
  return "\nMetrics:\n\n" + (markdown ? as_markdown(rows) : as_text(rows));
}

std::string options_only(const Schema& schema, bool markdown) {
  if (schema.options.empty()) return "This plugin has no options.\n";
  std::vector<Row> rows{{"option", "type", "default", "unit", "values", "meaning"}};
  bool has_units = false;
  for (const OptionSpec& spec : schema.options) {
    rows.push_back({spec.key, config::type_name(spec.type), default_text(spec), spec.unit,
                    values_text(spec), config::doc_text(spec)});
    has_units |= !spec.unit.empty();
  }
  if (!has_units)
    for (Row& row : rows) row.erase(row.begin() + 3);
  return markdown ? as_markdown(rows) : as_text(rows);
}

}  // namespace

std::string options_table(const Schema& schema, bool markdown) {
  return options_only(schema, markdown) + metrics_table(schema, markdown);
}

}  // namespace dsv3
