// Lists of components: layers of attention and feed-forward, optimizer groups, trackers.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>

#include "config/check.h"

namespace dsv3::config {

/// The words of an optimizer group's `role`.
const std::vector<std::string>& role_words();

/// Components at `path` with their layers, which must tile 0..layers-1; `layers` 0 = unknown, not
/// checked. `out` becomes a map when one component takes all layers, else a list.
std::vector<LayerRange> layer_ranges(Checker& checker, const std::string& path, Kind kind,
                                     int64_t layers, Node& out);

/// Optimizer groups with unique names.
std::vector<OptimizerGroup> optimizer_groups(Checker& checker, Node& out);

/// Trackers; may be none.
std::vector<ComponentSpec> trackers(Checker& checker, Node& out);

}  // namespace dsv3::config
