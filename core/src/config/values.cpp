#include "config/values.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include <dsv3/runtime/suggest.h>

namespace dsv3::config {
namespace {

constexpr double kMaxExactInteger = 9007199254740992.0;  // 2^53

std::optional<double> read_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  return value;
}

std::optional<int64_t> read_integer(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  const std::optional<double> number = read_number(text);  // 1e9
  if (number && std::trunc(*number) == *number && std::abs(*number) <= kMaxExactInteger)
    return static_cast<int64_t>(*number);
  return std::nullopt;
}

OptionType element_type(OptionType list) {
  switch (list) {
    case OptionType::integers:
      return OptionType::integer;
    case OptionType::numbers:
      return OptionType::number;
    default:
      return OptionType::string;
  }
}

bool is_list(OptionType type) {
  return type == OptionType::integers || type == OptionType::numbers || type == OptionType::strings;
}

std::optional<OptionValue> read_scalar(OptionType type, const OptionSpec& spec, const Text& text) {
  if (type == OptionType::string) return OptionValue(text.value);
  if (type == OptionType::integer)
    for (const auto& [word, value] : spec.words)
      if (text.value == word) return OptionValue(value);
  if (text.quoted) return std::nullopt;
  switch (type) {
    case OptionType::boolean:
      if (text.value == "true" || text.value == "false") return OptionValue(text.value == "true");
      return std::nullopt;
    case OptionType::integer:
      if (const auto value = read_integer(text.value)) return OptionValue(*value);
      return std::nullopt;
    default:
      if (const auto value = read_number(text.value)) return OptionValue(*value);
      return std::nullopt;
  }
}

std::string number_text(double value) {
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  // YAML 1.1 readers take 3e-04 for a string and 3.0e-04 for a number.
  const size_t exponent = text.find('e');
  if (exponent != text.npos && text.find('.') == text.npos) text.insert(exponent, ".0");
  return text;
}

struct TextOf {
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(int64_t v) const { return std::to_string(v); }
  std::string operator()(double v) const { return number_text(v); }
  std::string operator()(const std::string& v) const { return v; }
  template <class T>
  std::string operator()(const std::vector<T>& list) const {
    std::vector<std::string> texts;
    for (const T& v : list) texts.push_back((*this)(v));
    return "[" + comma_list(texts) + "]";
  }
};

// True when YAML reads the bare text as this string and nothing else.
bool is_plain(const std::string& text) {
  const auto inside = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' ||
           c == '/' || c == '+';
  };
  if (text.empty() ||
      !(std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '_' || text[0] == '/'))
    return false;
  // Not only ours: other readers take these for null and booleans.
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
    if (std::equal(text.begin(), text.end(), word, word + std::strlen(word),
                   [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; }))
      return false;
  return std::all_of(text.begin(), text.end(), inside);
}

template <class T>
Node list_node(const std::vector<T>& values) {
  Node list;
  list.type = Node::Type::list;
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, std::string>)
      list.items.push_back(string_node(value));
    else
      list.items.push_back(make_scalar(value_text(OptionValue(value)), {}));
  }
  return list;
}

std::string not_of_type(const OptionSpec& spec, OptionType type) {
  std::string text = "must be " + type_name(type);
  for (const auto& [word, value] : spec.words) text += " or '" + word + "'";
  return text;
}

// As YAML, C++ and Python spell them, with or without a sign.
bool is_not_finite(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  text.erase(0, text.find_first_not_of("+-."));
  return text == "nan" || text == "inf" || text == "infinity";
}

std::vector<std::string> type_notes(OptionType type, const Text& text) {
  if (type == OptionType::boolean) return {"write true or false"};
  if (type != OptionType::string && text.quoted && !text.environment)
    return {"a value in quotes is a string: remove the quotes"};
  if (type == OptionType::number && is_not_finite(text.value)) return {"numbers must be finite"};
  return {};
}

}  // namespace

std::string doc_text(const OptionSpec& spec) {
  if (!spec.convention) return spec.doc;
  std::string others;
  for (const auto& [implementation, value] : spec.by_implementation)
    others += ", " + implementation + ": " + value_text(value);
  return spec.doc + " (a convention" + others + ")";
}

std::string got(const Node& node) {
  if (node.is_scalar()) return "'" + node.text + "'";
  return node.is_null() ? "nothing" : node.is_list() ? "a list" : "a map";
}

std::string type_name(OptionType type) {
  switch (type) {
    case OptionType::boolean:
      return "a boolean";
    case OptionType::integer:
      return "an integer";
    case OptionType::number:
      return "a number";
    case OptionType::string:
      return "a string";
    case OptionType::integers:
      return "a list of integers";
    case OptionType::numbers:
      return "a list of numbers";
    case OptionType::strings:
      return "a list of strings";
  }
  return "a value";
}

std::string misfit(const OptionSpec& spec, const OptionValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    if (spec.choices.empty() ||
        std::find(spec.choices.begin(), spec.choices.end(), *text) != spec.choices.end())
      return "";
    return "must be one of " + comma_list(spec.choices);
  }
  const auto* integer = std::get_if<int64_t>(&value);
  const auto* number = std::get_if<double>(&value);
  if (!integer && !number) return "";
  if (integer)
    for (const auto& word : spec.words)
      if (word.second == *integer) return "";
  const double compared = integer ? static_cast<double>(*integer) : *number;
  if (spec.min && compared < *spec.min) return "must be at least " + number_text(*spec.min);
  if (spec.max && compared > *spec.max) return "must be at most " + number_text(*spec.max);
  return "";
}

namespace {

// One scalar: the option itself, or an element of a list option.
std::optional<Converted> convert_scalar(OptionType type, const OptionSpec& spec, const Node& node,
                                        const std::string& what, Resolver& resolver,
                                        Diagnostics& diagnostics) {
  if (node.is_null()) {
    diagnostics.error(node, what + " has no value",
                      {"give it one, or remove the key (" + spec.doc + ")"});
    return std::nullopt;
  }
  if (!node.is_scalar()) {
    diagnostics.error(node, what + " " + not_of_type(spec, type) + ", got " + got(node));
    return std::nullopt;
  }
  const Text& text = resolver.resolve(node);
  if (!text.ok) return std::nullopt;
  const std::string shown = text.environment ? node.text : text.value;  // no secrets in error texts
  const std::optional<OptionValue> value = read_scalar(type, spec, text);
  if (!value) {
    diagnostics.error(node, what + " " + not_of_type(spec, type) + ", got '" + shown + "'",
                      type_notes(type, text));
    return std::nullopt;
  }
  if (const std::string wrong = misfit(spec, *value); !wrong.empty()) {
    const std::string near =
        text.environment || text.value.size() < 5 ? "" : nearest(text.value, spec.choices);
    std::vector<std::string> notes;
    if (!near.empty()) notes.push_back("did you mean '" + near + "'?");
    diagnostics.error(node, what + " " + wrong + ", got '" + shown + "'", notes);
    return std::nullopt;
  }
  Node stored = text.environment ? stored_string(node, text) : value_node(spec, *value);
  stored.at = node.at;
  return Converted{*value, std::move(stored)};
}

}  // namespace

std::optional<Converted> convert(const OptionSpec& spec, const Node& node, const std::string& what,
                                 Resolver& resolver, Diagnostics& diagnostics) {
  if (!is_list(spec.type))
    return convert_scalar(spec.type, spec, node, what, resolver, diagnostics);
  if (!node.is_list()) {
    diagnostics.error(node, what + " must be " + type_name(spec.type) + ", got " + got(node),
                      {"write it in brackets: [a, b]"});
    return std::nullopt;
  }
  std::vector<int64_t> integers;
  std::vector<double> numbers;
  std::vector<std::string> strings;
  Node stored;
  stored.type = Node::Type::list;
  stored.at = node.at;
  for (const Node& item : node.items) {
    auto element = convert_scalar(element_type(spec.type), spec, item, "an element of " + what,
                                  resolver, diagnostics);
    if (!element) continue;
    if (spec.type == OptionType::integers) integers.push_back(std::get<int64_t>(element->value));
    if (spec.type == OptionType::numbers) numbers.push_back(std::get<double>(element->value));
    if (spec.type == OptionType::strings) strings.push_back(std::get<std::string>(element->value));
    stored.items.push_back(std::move(element->stored));
  }
  if (stored.items.size() != node.items.size()) return std::nullopt;
  if (spec.type == OptionType::integers) return Converted{std::move(integers), std::move(stored)};
  if (spec.type == OptionType::numbers) return Converted{std::move(numbers), std::move(stored)};
  return Converted{std::move(strings), std::move(stored)};
}

std::string value_text(const OptionValue& value) {
  return std::visit(TextOf{}, value);
}

Node value_node(const OptionSpec& spec, const OptionValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return string_node(*text);
  if (const auto* integer = std::get_if<int64_t>(&value))
    for (const auto& [word, meaning] : spec.words)
      if (meaning == *integer) return string_node(word);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return list_node(*list);
  if (const auto* list = std::get_if<std::vector<double>>(&value)) return list_node(*list);
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) return list_node(*list);
  return make_scalar(value_text(value), {});
}

Node stored_string(const Node& node, const Text& text) {
  Node stored = text.environment ? make_scalar(node.text, {}) : string_node(text.value);
  stored.quoted |= text.environment;
  stored.at = node.at;
  return stored;
}

Node string_node(const std::string& text) {
  Node node = make_scalar(without_references(text), {});
  node.quoted = !is_plain(text);
  return node;
}

}  // namespace dsv3::config
