#include "config/interpolate.h"

#include <algorithm>
#include <cstdlib>

namespace dsv3::config {
namespace {
constexpr size_t kMaxChain = 32;          // references through references
constexpr size_t kMaxResolved = 1 << 16;  // bytes of one value
}  // namespace

const Text& Resolver::resolve(const Node& scalar) {
  if (const auto known = known_.find(&scalar); known != known_.end()) return known->second;
  open_.push_back(&scalar);
  Text text = compute(scalar);
  open_.pop_back();
  return known_.emplace(&scalar, std::move(text)).first->second;
}

Text Resolver::compute(const Node& scalar) {
  const std::string& raw = scalar.text;
  Text text{"", scalar.quoted, false, true};
  if (scalar.literal) {
    text.value = raw;
    return text;
  }
  size_t at = 0;
  while (true) {
    const size_t begin = raw.find("${", at);
    text.value.append(raw, at, begin - at);
    if (begin == raw.npos) return text;
    if (begin > at && raw[begin - 1] == '$') {  // "$${"; one dollar was appended before
      text.value += '{';
      at = begin + 2;
      continue;
    }
    const size_t end = raw.find('}', begin);
    if (end == raw.npos) {
      diagnostics_.error(scalar, "'${' without '}'", {"write $${ for a plain ${"});
      text.ok = false;
      return text;
    }
    const Text part = look_up(scalar, raw.substr(begin + 2, end - begin - 2));
    text.value += part.value;
    text.quoted = false;  // inside {...} YAML requires the quotes, so they do not mean a string
    text.environment |= part.environment;
    text.ok &= part.ok;
    if (text.value.size() > kMaxResolved) {
      diagnostics_.error(
          scalar, "references expand to more than " + std::to_string(kMaxResolved) + " bytes");
      text.ok = false;
    }
    if (!text.ok) return text;
    at = end + 1;
  }
}

Text Resolver::look_up(const Node& scalar, const std::string& name) {
  const Text failed{"", false, false, false};
  if (name.rfind("env:", 0) == 0) {
    const char* value = std::getenv(name.c_str() + 4);
    if (value) return {value, false, true, true};
    diagnostics_.error(scalar, "environment variable '" + name.substr(4) + "' is not set",
                       {"set it for this command: " + name.substr(4) + "=... dsv3-run ..."});
    return failed;
  }
  const Node* target = name.empty() ? nullptr : find_path(root_, name);
  if (!target || target->is_null()) {
    diagnostics_.error(scalar, "'" + name + "' is not set in this experiment",
                       {"${a.b} takes the value of a key, ${env:NAME} of an environment variable"});
    return failed;
  }
  if (!target->is_scalar()) {
    diagnostics_.error(scalar, "'" + name + "' is not a single value");
    return failed;
  }
  if (std::find(open_.begin(), open_.end(), target) != open_.end()) {
    diagnostics_.error(scalar, "'${" + name + "}' refers to itself");
    return failed;
  }
  if (open_.size() > kMaxChain) {
    diagnostics_.error(scalar, "more than " + std::to_string(kMaxChain) + " references in a chain");
    return failed;
  }
  return resolve(*target);
}

}  // namespace dsv3::config
