// What a run folder says about its run.
#pragma once

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

/// Returns 32 random hexadecimal digits.
std::string new_run_uid();

/// Returns what trackers and callbacks receive when a run starts. Reads provenance.json.
RunInfo run_info(const std::filesystem::path& folder, const Experiment& experiment, bool resumed);

}  // namespace dsv3
