#include <array>

#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/registrar.h>

#include "config/node.h"

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
  for (size_t i = 0; i < kKindNames.size(); ++i)
    if (name == kKindNames[i]) return static_cast<Kind>(i + 1);
  const std::vector<std::string> known(kKindNames.begin(), kKindNames.end());
  const std::string near = nearest(name, known);
  throw Error("unknown kind of component '" + name + "'; " +
                  (near.empty() ? "" : "did you mean '" + near + "'? ") +
                  "known kinds: " + config::comma_list(known),
              ExitCode::usage);
}

}  // namespace dsv3
