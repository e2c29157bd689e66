#include <algorithm>

#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/sync.h>
#include <dsv3/sdk/error.h>

#include "run/run_info.h"
#include "train/resume.h"
#include "train/tracking.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// How the run has ended, as far as a tracker is concerned.
RunStatus status_of(const RunFolder& folder) {
  std::error_code ignored;
  const std::string state = stdfs::exists(folder.status(), ignored)
                                ? read_json(folder.status()).value("state", "")
                                : std::string();
  return state == "finished" ? RunStatus::finished
         : state == "failed" ? RunStatus::failed
                             : RunStatus::stopped;
}

}  // namespace

Synced sync_run(const stdfs::path& path, Plugins& plugins,
                const std::vector<SettingsLayer>& settings, double seconds) {
  const stdfs::path absolute = stdfs::absolute(path).lexically_normal();
  const stdfs::path run = absolute.has_filename() ? absolute : absolute.parent_path();
  std::error_code ignored;
  if (!stdfs::is_regular_file(run / "config.yaml", ignored))
    throw Error(path.string() +
                    " is not a run folder: it has no config.yaml; pass a folder such as runs/NAME",
                ExitCode::usage);
  const RunFolder folder = RunFolder::open(run.parent_path(), run.filename().string());
  const Experiment experiment = experiment_of_run(run, plugins);
  std::vector<NamedTracker> trackers = make_trackers(
      experiment, plugins, run, settings, [&](const std::string& name, const std::string& reason) {
        throw Error("tracker '" + name + "' of " + run.filename().string() + ": " + reason,
                    ExitCode::usage);
      });
  std::erase_if(trackers,
                [&](const NamedTracker& tracker) { return has_received_everything(tracker, run); });
  if (trackers.empty()) return Synced::nothing_to_send;
  TrackerSender sender(std::move(trackers), run_info(run, experiment, /*resumed=*/true));
  return sender.finish(status_of(folder), seconds) ? Synced::complete : Synced::incomplete;
}

std::vector<stdfs::path> runs_in(const stdfs::path& output) {
  std::vector<stdfs::path> runs;
  std::error_code error;
  for (stdfs::directory_iterator it(output, error), end; !error && it != end; it.increment(error))
    if (stdfs::is_regular_file(it->path() / "config.yaml", error)) runs.push_back(it->path());
  std::ranges::sort(runs);
  return runs;
}

}  // namespace dsv3
