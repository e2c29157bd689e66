// One run in its folder, from the first file that it writes to status.json.
#pragma once

#include <functional>

#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/runtime/trainer.h>

#include "train/resume.h"

namespace dsv3 {

/// How a run begins.
struct Start {
  bool resumed = false;
  std::optional<Experiment> stored;  ///< that of the resumed or branched run, before changes
  Json changes = Json::array();      ///< see changes_of()
  std::optional<BranchPoint> branch;
};

/// Throws if this machine does not have the device of run `run`, which is to be resumed. A run
/// keeps its device, even if it was chosen by `auto`.
void require_device_of(const Experiment& stored, const std::filesystem::path& run);

/// Calls `f` with the model passed in --from. Errors mention the flag and the path.
void open_starting_model(const std::string& from, Plugins& plugins,
                         const std::function<void(const StoredModel&)>& f);

/// Trains, and writes status.json, even on an error. Returns the exit code. Collective.
int run_session(const RunRequest& request, RunFolder& folder, Ranks ranks, Experiment experiment,
                Plugins& plugins, Start start);

}  // namespace dsv3
