#include "config/yaml.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>

#include <dsv3/runtime/experiment.h>

#include "config/node.h"

namespace dsv3::config {
namespace {

std::string number_text(double value) {
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  // YAML 1.1 readers take 3e-04 for a string and 3.0e-04 for a number.
  const size_t exponent = text.find('e');
  if (exponent != text.npos && text.find('.') == text.npos) text.insert(exponent, ".0");
  return text;
}

// Whether every YAML reader takes the bare text for this string.
bool is_plain(const std::string& text) {
  const auto is_plain_character = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' ||
           c == '/' || c == '+';
  };
  if (text.empty() ||
      !(std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '_' || text[0] == '/'))
    return false;
  // Other readers take these for null and booleans.
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
    if (std::equal(text.begin(), text.end(), word, word + std::strlen(word),
                   [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; }))
      return false;
  return std::all_of(text.begin(), text.end(), is_plain_character);
}

// `text` with `$${` for every `${`, so that it resolves to itself.
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

// Writes the values between two iterators, whose paths share their first bytes.
class Emitter {
 public:
  explicit Emitter(bool origins) : origins_(origins) {}

  /// A map or list whose keys start at byte `begin` of each path.
  void write(Iterator first, Iterator last, size_t begin, const std::string& indent) {
    for (bool in_list_item = item_; first != last; in_list_item = false) {
      const std::string key = key_of(*first, begin);
      const Iterator end = std::find_if(
          first, last, [&](const ResolvedValue& value) { return key_of(value, begin) != key; });
      if (!in_list_item) out_ += indent;
      item_ = false;
      const size_t next = begin + key.size() + 1;
      if (is_index(key)) {
        out_ += "- ";
        item_ = true;
        write(first, end, next, indent + "  ");
      } else if (first->path.size() < next) {
        out_ += key + ": " + first->yaml() + (origins_ ? "  # " + first->origin.full_text() : "") +
                "\n";
      } else {
        out_ += key + ":\n";
        write(first, end, next, indent + "  ");
      }
      first = end;
    }
  }
  std::string take() { return std::move(out_); }

 private:
  static std::string key_of(const ResolvedValue& value, size_t begin) {
    return value.path.substr(begin, value.path.find('.', begin) - begin);
  }

  const bool origins_;
  bool item_ = false;  // the next key follows "- "
  std::string out_;
};

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
  config::Emitter emitter(origins);
  emitter.write(values.begin(), values.end(), 0, "");
  return emitter.take();
}

Origin Experiment::origin(const std::string& path) const {
  const ResolvedValue* value = resolved.find(path);
  return value ? value->origin : Origin{"default"};
}

}  // namespace dsv3
