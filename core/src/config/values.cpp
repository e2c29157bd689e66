#include "config/values.h"

#include <algorithm>
#include <charconv>
#include <cmath>

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

std::optional<OptionValue> read_scalar(OptionType type, const OptionSpec& spec, const Text& text) {
  if (!spec.unset_word.empty() && text.value == spec.unset_word)
    return OptionValue(std::monostate());
  if (type == OptionType::string) return OptionValue(text.value);
  if (type == OptionType::integer)
    for (const auto& [word, value] : spec.words)
      if (text.value == word) return OptionValue(value);
  if (text.quoted) return std::nullopt;
  if (type == OptionType::boolean && (text.value == "true" || text.value == "false"))
    return OptionValue(text.value == "true");
  if (type == OptionType::integer)
    if (const auto value = read_integer(text.value)) return OptionValue(*value);
  if (type == OptionType::number)
    if (const auto value = read_number(text.value)) return OptionValue(*value);
  return std::nullopt;
}

// Converts a value that was set through the API to the option's type. A floating-point option also
// accepts an integer.
std::optional<OptionValue> typed_scalar(OptionType type, const OptionSpec& spec,
                                        const OptionValue& value) {
  const auto* integer = std::get_if<int64_t>(&value);
  if (type == OptionType::number && integer) return static_cast<double>(*integer);
  if (std::holds_alternative<std::string>(value))  // `auto`
    return read_scalar(type, spec, {std::get<std::string>(value), true});
  // OptionValue's alternatives are in the same order as the enumerators of OptionType, which start
  // at 1.
  if (value.index() + 1 == static_cast<size_t>(type)) return value;
  return std::nullopt;
}

// Formats "a boolean" or "an integer".
std::string with_article(OptionType type) {
  return (type == OptionType::integer ? "an " : "a ") + type_name(type);
}

std::string type_error(const OptionSpec& spec, OptionType type) {
  std::string text = "must be " + with_article(type);
  for (const auto& [word, value] : spec.words) text += " or '" + word + "'";
  if (!spec.unset_word.empty()) text += " or '" + spec.unset_word + "'";
  return text;
}

// NaN and infinity as spelled in YAML, C++ and Python, with or without a sign.
bool is_not_finite(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
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

// Converts one scalar: the option itself, or an element of a list option.
std::optional<OptionValue> convert_scalar(OptionType type, const OptionSpec& spec, const Node& node,
                                          const std::string& what, Resolver& resolver) {
  Diagnostics& diagnostics = resolver.diagnostics();
  if (node.is_null()) {
    diagnostics.error(node, what + " has no value",
                      {"set one, or remove the key (" + spec.doc + ")"});
    return std::nullopt;
  }
  if (!node.is_scalar()) {
    diagnostics.error(node, what + " " + type_error(spec, type) + ", got " + shown(node));
    return std::nullopt;
  }
  const Text& text = resolver.resolve(node);
  if (!text.ok) return std::nullopt;
  const std::string visible =
      text.environment ? node.text : text.value;  // an environment variable may contain a secret
  const std::optional<OptionValue> value =
      node.value ? typed_scalar(type, spec, *node.value) : read_scalar(type, spec, text);
  if (!value) {
    diagnostics.error(node, what + " " + type_error(spec, type) + ", got '" + visible + "'",
                      type_notes(type, text));
    return std::nullopt;
  }
  if (const std::string wrong = misfit(spec, *value); !wrong.empty()) {
    std::vector<std::string> notes;
    if (!text.environment && text.value.size() >= 5)
      notes.push_back(did_you_mean(text.value, spec.choices));
    diagnostics.error(node, what + " " + wrong + ", got '" + visible + "'", notes);
    return std::nullopt;
  }
  return value;
}

template <class T>
std::optional<OptionValue> convert_list(const OptionSpec& spec, const Node& node,
                                        const std::string& what, Resolver& resolver) {
  if (!node.is_list()) {
    resolver.diagnostics().error(
        node, what + " must be " + with_article(spec.type) + ", got " + shown(node),
        {"write a list in brackets: [a, b]"});
    return std::nullopt;
  }
  std::vector<T> values;
  for (const Node& item : node.items)
    if (auto value =
            convert_scalar(element_type(spec.type), spec, item, "an element of " + what, resolver))
      values.push_back(std::get<T>(*value));
  if (values.size() != node.items.size()) return std::nullopt;
  return values;
}

}  // namespace

std::string shown(const Node& node) {
  if (node.is_scalar()) return "'" + node.text + "'";
  return node.is_null() ? "nothing" : node.is_list() ? "a list" : "a map";
}

std::string type_name(OptionType type) {
  constexpr const char* kNames[]{"boolean",          "integer",         "number",         "string",
                                 "list of integers", "list of numbers", "list of strings"};
  return kNames[static_cast<size_t>(type) - 1];
}

OptionType element_type(OptionType type) {
  const int lists = static_cast<int>(OptionType::integers) - static_cast<int>(OptionType::integer);
  return type < OptionType::integers ? type : OptionType(static_cast<int>(type) - lists);
}

std::string misfit(const OptionSpec& spec, const OptionValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    const bool fits = spec.choices.empty() || std::ranges::count(spec.choices, *text);
    return fits ? "" : "must be one of " + comma_list(spec.choices);
  }
  const auto* integer = std::get_if<int64_t>(&value);
  const auto* number = std::get_if<double>(&value);
  if ((!integer && !number) || !word_of(spec, value).empty()) return "";
  const double compared = integer ? static_cast<double>(*integer) : *number;
  if (spec.min && compared < *spec.min) return "must be at least " + value_text(*spec.min);
  if (spec.max && compared > *spec.max) return "must be at most " + value_text(*spec.max);
  return "";
}

std::optional<OptionValue> convert(const OptionSpec& spec, const Node& node,
                                   const std::string& what, Resolver& resolver) {
  switch (spec.type) {
    case OptionType::integers:
      return convert_list<int64_t>(spec, node, what, resolver);
    case OptionType::numbers:
      return convert_list<double>(spec, node, what, resolver);
    case OptionType::strings:
      return convert_list<std::string>(spec, node, what, resolver);
    default:
      return convert_scalar(spec.type, spec, node, what, resolver);
  }
}

bool is_key_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.';
}

std::string reference_yaml(const Node& node, Resolver& resolver) {
  const auto refers = [&](const Node& n) {
    return n.is_scalar() && resolver.resolve(n).environment;
  };
  if (refers(node)) return quoted_yaml(node.text);
  if (!std::any_of(node.items.begin(), node.items.end(), refers)) return "";
  std::vector<std::string> items;
  for (const Node& item : node.items)
    items.push_back(!item.quoted && read_number(item.text) ? item.text : quoted_yaml(item.text));
  return "[" + comma_list(items) + "]";
}

}  // namespace dsv3::config
