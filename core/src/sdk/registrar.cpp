#include <array>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3 {
namespace {
constexpr std::array<const char*, 10> kKindNames{
    "attention", "feed_forward", "position", "optimizer", "schedule",
    "strategy",  "tracker",      "data",     "tokenizer", "format"};
}

const char* kind_name(Kind kind) {
  return kKindNames.at(static_cast<size_t>(kind) - 1);
}

Kind kind_from_name(const std::string& name) {
  std::string known;
  for (size_t i = 0; i < kKindNames.size(); ++i) {
    if (name == kKindNames[i]) return static_cast<Kind>(i + 1);
    known += (i ? ", " : "") + std::string(kKindNames[i]);
  }
  throw Error("unknown kind of component '" + name + "'; known kinds: " + known, ExitCode::usage);
}

}  // namespace dsv3
