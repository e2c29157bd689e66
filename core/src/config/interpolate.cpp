#include <algorithm>
#include <cstdlib>

#include <dsv3/runtime/printable.h>

#include "config/values.h"

namespace dsv3::config {
namespace {
constexpr size_t kMaxChain = 32;          // references through references
constexpr size_t kMaxResolved = 1 << 16;  // maximum number of bytes in a value
}  // namespace

const Text& Resolver::resolve(const Node& scalar) {
  if (const auto known = known_.find(&scalar); known != known_.end()) return known->second;
  open_.push_back(&scalar);
  Text text = compute(scalar);
  open_.pop_back();
  return known_.emplace(&scalar, std::move(text)).first->second;
}

Text Resolver::fail(const Node& scalar, const std::string& message,
                    std::vector<std::string> notes) {
  diagnostics_.error(scalar, message, std::move(notes));
  return {"", false, false, false};
}

Text Resolver::compute(const Node& scalar) {
  const std::string& raw = scalar.text;
  Text text{"", scalar.quoted, false, true};
  if (scalar.literal) {
    text.value = raw;
    return text;
  }
  for (size_t at = 0;;) {
    const size_t begin = raw.find("${", at);
    text.value.append(raw, at, begin - at);
    if (begin == raw.npos) return text;
    if (begin > at && raw[begin - 1] == '$') {  // "$${": text.value already ends in '$'
      text.value += '{';
      at = begin + 2;
      continue;
    }
    const size_t end = raw.find('}', begin);
    if (end == raw.npos) return fail(scalar, "'${' without '}'", {"write $${ for a plain ${"});
    const Text part = look_up(scalar, raw.substr(begin + 2, end - begin - 2));
    if (!part.ok) return part;
    text.value += part.value;
    // YAML may require quotes around a reference, so they do not make it a string.
    text.quoted = false;
    text.environment |= part.environment;
    if (text.value.size() > kMaxResolved)
      return fail(scalar,
                  "references expand to more than " + std::to_string(kMaxResolved) + " bytes");
    at = end + 1;
  }
}

Text Resolver::look_up(const Node& scalar, const std::string& name) {
  if (name.starts_with("env:")) {
    const std::string variable = name.substr(4);
    if (const char* value = std::getenv(variable.c_str())) {
      hide_value(variable, value);
      return {value, false, true, true};
    }
    return fail(scalar, "environment variable '" + variable + "' is not set",
                {"set it for this command: " + variable + "=... dsv3-run ..."});
  }
  const Node* target = name.empty() ? nullptr : find_path(root_, name);
  if (!target || target->is_null())
    return fail(scalar, "'" + name + "' is not set in this experiment",
                {"${a.b} refers to a key and ${env:NAME} to an environment variable"});
  if (!target->is_scalar()) return fail(scalar, "'" + name + "' is not a single value");
  if (std::ranges::count(open_, target)) return fail(scalar, "'${" + name + "}' refers to itself");
  if (open_.size() > kMaxChain)
    return fail(scalar, "the chain of references is longer than " + std::to_string(kMaxChain));
  return resolve(*target);
}

}  // namespace dsv3::config
