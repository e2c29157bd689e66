// Sends to trackers what they have not received from ended runs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

enum class Synced {
  no_tracker = 1,
  nothing_to_send,  ///< the trackers had received everything
  complete,
  incomplete  ///< a tracker could not be reached in time, or is still busy
};

/// Sends what the trackers of the run in `folder` have not received. Gives up on a tracker after
/// `seconds`, and on one whose service does not take the run after 30. Throws dsv3::Error
/// (ExitCode::usage) if the folder is not that of a run, or if another process trains the run.
/// `settings` are those of this machine.
Synced sync_run(const std::filesystem::path& folder, Plugins& plugins,
                const std::vector<SettingsLayer>& settings, double seconds);

/// Downloads the run to which a tracker's service has given `id` into a new folder of `output`, and
/// returns the run's name. Asks all trackers that have an address in `settings`. Returns "" if none
/// knows the run. Throws dsv3::Error (ExitCode::checkpoint) if no checkpoint of it was uploaded, or
/// if the checkpoint is damaged.
std::string fetch_run(const std::filesystem::path& output, const std::string& id, Plugins& plugins,
                      const std::vector<SettingsLayer>& settings);

}  // namespace dsv3
