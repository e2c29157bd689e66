// Where components stand in an experiment.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <dsv3/sdk/registrar.h>

namespace dsv3::config {

struct Slot {
  std::string_view path;  ///< e.g. "model.attention"
  Kind kind;
  bool list;      ///< may hold several components
  bool optional;  ///< an experiment may go without
};

/// All slots, outer ones before inner ones.
std::span<const Slot> slots();

/// The slot at `path` or, for a list, the one that holds element `path` ("optimizer.0"); else
/// nullptr.
const Slot* slot_at(std::string_view path);

/// Keys of a component's map that the core reads itself, besides the plugin's options: "plugin",
/// "library" ...
std::vector<std::string> core_keys(Kind kind);

}  // namespace dsv3::config
