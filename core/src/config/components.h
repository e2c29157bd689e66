// Lists of components: layers of attention and feed-forward, optimizer groups, and plain ones.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>

#include "config/check.h"
#include "config/slots.h"

namespace dsv3::config {

/// The words of an optimizer group's `role`.
const std::vector<std::string>& role_words();

/// Components at `path` with their layers, which must tile 0..layers-1; `layers` 0 = unknown, not
/// checked.
std::vector<LayerRange> layer_ranges(Checker& checker, const std::string& path, Kind kind,
                                     int64_t layers);

/// Optimizer groups with unique names.
std::vector<OptimizerGroup> optimizer_groups(Checker& checker);

/// The components of a slot that has no keys of its own; may be none if the slot is optional.
std::vector<ComponentSpec> components(Checker& checker, const Slot& slot);

}  // namespace dsv3::config
