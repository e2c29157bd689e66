// Paths of components in an experiment.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <dsv3/sdk/kinds.h>

namespace dsv3::config {

/// A kind whose components are in experiments, at `path`.
using Slot = KindRow;

/// All slots, outer ones before inner ones.
std::span<const Slot> slots();

/// The slot at `path` or, for a list, the one that holds element `path` ("optimizer.0"); else
/// nullptr.
const Slot* slot_at(std::string_view path);

/// Last parts of the slots' paths in section `path`: "attention", "position" ... in "model".
std::vector<std::string> slot_keys(std::string_view section);

/// Keys of a component's map that the core reads itself, besides the plugin's options: "plugin",
/// "library" ...
std::vector<std::string> core_keys(Kind kind);

}  // namespace dsv3::config
