#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/suggest.h>

#include "config/values.h"

namespace dsv3::config {
namespace {

std::string number_text(double value) {
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  // YAML 1.1 readers interpret 3e-04 as a string and 3.0e-04 as a number.
  const size_t exponent = text.find('e');
  if (exponent != text.npos && text.find('.') == text.npos) text.insert(exponent, ".0");
  return text;
}

// Whether every YAML reader interprets the unquoted text as this string.
bool is_plain(const std::string& text) {
  const auto is_plain_character = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' ||
           c == '/' || c == '+';
  };
  if (text.empty() ||
      !(std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '_' || text[0] == '/'))
    return false;
  // Some readers interpret these words as null or booleans.
  std::string lower = text;
  std::ranges::transform(text, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
    if (lower == word) return false;
  return std::all_of(text.begin(), text.end(), is_plain_character);
}

// Escapes every `${` in `text` as `$${`.
std::string without_references(std::string text) {
  for (size_t at = text.find("${"); at != text.npos; at = text.find("${", at + 3))
    text.insert(at, "$");
  return text;
}

struct TextOf {
  bool as_yaml;
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(int64_t v) const { return std::to_string(v); }
  std::string operator()(double v) const { return number_text(v); }
  std::string operator()(std::monostate) const { return as_yaml ? "null" : "unset"; }
  std::string operator()(const std::string& v) const {
    return !as_yaml || is_plain(v) ? v : quoted_yaml(without_references(v));
  }
  template <class T>
  std::string operator()(const std::vector<T>& list) const {
    std::vector<std::string> texts;
    for (const T& v : list) texts.push_back((*this)(v));
    return "[" + comma_list(texts) + "]";
  }
};

using Iterator = std::vector<ResolvedValue>::const_iterator;

// Appends the values in [first, last) as a YAML map or list. The first `begin` bytes of their paths
// are the same and are omitted. If `in_item` is true, the first key follows "- " on the same line.
void write(std::string& out, Iterator first, Iterator last, bool origins, size_t begin = 0,
           const std::string& indent = "", bool in_item = false) {
  const auto key_of = [&](const ResolvedValue& value) {
    return value.path.substr(begin, value.path.find('.', begin) - begin);
  };
  while (first != last) {
    const std::string key = key_of(*first);
    const Iterator end =
        std::find_if(first, last, [&](const ResolvedValue& value) { return key_of(value) != key; });
    if (!std::exchange(in_item, false)) out += indent;
    const size_t next = begin + key.size() + 1;
    const bool is_item = is_index(key);
    out += is_item ? "- " : key + ":";
    if (is_item || first->path.size() >= next) {
      if (!is_item) out += "\n";
      write(out, first, end, origins, next, indent + "  ", is_item);
    } else {
      out += " " + first->yaml() +
             (origins && key != "dsv3" ? "  # " + first->origin.full_text() : "") + "\n";
    }
    first = end;
  }
}

}  // namespace

std::string value_text(const OptionValue& value) {
  return std::visit(TextOf{false}, value);
}

std::string value_yaml(const OptionValue& value) {
  return std::visit(TextOf{true}, value);
}

std::string quoted_yaml(const std::string& text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (byte < 0x20 || byte == 0x7F)
      out += std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
    else
      out += c;
  }
  return out + "\"";
}

std::string doc_text(const OptionSpec& spec) {
  return spec.doc + (spec.convention ? " (a convention)" : "");
}

std::string word_of(const OptionSpec& spec, const OptionValue& value) {
  if (std::holds_alternative<std::monostate>(value)) return spec.unset_word;
  if (const auto* integer = std::get_if<int64_t>(&value))
    for (const auto& [word, meaning] : spec.words)
      if (meaning == *integer) return word;
  return "";
}

}  // namespace dsv3::config

namespace dsv3 {

std::string ResolvedValue::yaml() const {
  return written.empty() ? config::value_yaml(value) : written;
}

const ResolvedValue* Resolved::find(const std::string& path) const {
  const auto found = std::find_if(values.begin(), values.end(),
                                  [&](const ResolvedValue& value) { return value.path == path; });
  return found == values.end() ? nullptr : &*found;
}

void Resolved::set(const std::string& path, OptionValue value, Origin origin) {
  for (ResolvedValue& known : values)
    if (known.path == path) known = {path, std::move(value), std::move(origin)};
}

std::string Resolved::yaml(bool origins) const {
  std::string text;
  config::write(text, values.begin(), values.end(), origins);
  return text;
}

Origin Experiment::origin(const std::string& path) const {
  const ResolvedValue* value = resolved.find(path);
  return value ? value->origin : Origin{"default"};
}

std::vector<const ComponentSpec*> Experiment::components() const {
  std::vector<const ComponentSpec*> all{&position, &schedule, &strategy, &data};
  if (!tokenizer.plugin.empty()) all.push_back(&tokenizer);
  for (const auto* layers : {&attention, &feed_forward})
    for (const LayerRange& range : *layers) all.push_back(&range.component);
  for (const OptimizerGroup& group : optimizer) all.push_back(&group.component);
  for (const ComponentSpec& spec : tracker) all.push_back(&spec);
  for (const auto& [kind, specs] : others)
    for (const ComponentSpec& spec : specs) all.push_back(&spec);
  return all;
}

}  // namespace dsv3
