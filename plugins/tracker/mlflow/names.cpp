#include "names.h"

namespace mlflow {
namespace {

constexpr size_t kLongest = 250;

bool is_allowed(char c) {
  const bool is_alphanumeric =
      (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  return is_alphanumeric || (c != '\0' && std::string("_-. :/").find(c) != std::string::npos);
}

/// MLflow also rejects paths that are not normal: a/../b, a//b, /a, a/ and a/.
std::string acceptable(const std::string& name) {
  std::string result;
  for (const char c : name) {
    const bool repeats = c == '/' && (result.empty() || result.back() == '/');
    result += is_allowed(c) && !repeats ? c : '_';
  }
  for (size_t begin = 0; begin <= result.size();) {
    const size_t end = std::min(result.find('/', begin), result.size());
    const std::string part = result.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") result.replace(begin, end - begin, "_");
    begin = result.find('/', begin);
    if (begin == result.npos) break;
    ++begin;
  }
  return result.substr(0, kLongest);
}

}  // namespace

std::string Names::operator()(const std::string& name) {
  const auto found = known_.find(name);
  if (found != known_.end()) return found->second;
  const std::string first = acceptable(name);
  std::string result = first;
  for (int number = 2; used_.contains(result); ++number) {
    const std::string suffix = "." + std::to_string(number);
    result = first.substr(0, kLongest - suffix.size()) + suffix;
  }
  used_.insert(result);
  known_[name] = result;
  if (result != name) changed_[result] = name;
  return result;
}

void Names::learn(const std::map<std::string, std::string>& changed) {
  for (const auto& [result, name] : changed) {
    used_.insert(result);
    known_[name] = result;
    changed_[result] = name;
  }
}

}  // namespace mlflow
