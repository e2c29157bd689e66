// The plugin libraries that an experiment's components come from.
#pragma once

#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/plugins.h>

namespace dsv3 {

/// Each library once, in the order they were loaded. Excludes libraries that were loaded but are
/// not used, such as that of a plugin which an override replaced.
std::vector<LoadedLibrary> libraries_of(const Experiment& experiment, const Plugins& plugins);

}  // namespace dsv3
