#include <algorithm>

#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/sync.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "call/checked.h"
#include "run/run_info.h"
#include "train/resume.h"
#include "train/tracking.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// How long to try to reach a tracker's service, and the run on it.
constexpr double kBeginSeconds = 30;

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
  if (trackers.empty()) return Synced::no_tracker;
  std::erase_if(trackers,
                [&](const NamedTracker& tracker) { return has_received_everything(tracker, run); });
  if (trackers.empty()) return Synced::nothing_to_send;
  TrackerSender sender(std::move(trackers), run_info(run, experiment, /*resumed=*/true));
  return sender.finish(status_of(folder), seconds, std::min(seconds, kBeginSeconds))
             ? Synced::complete
             : Synced::incomplete;
}

namespace {

/// A new folder that is removed with this object, unless it was moved away.
struct Download {
  stdfs::path folder;
  explicit Download(const stdfs::path& target) : folder(fs::temporary_name(target)) {
    fs::make_folders(folder);
  }
  ~Download() {
    std::error_code ignored;
    stdfs::remove_all(folder, ignored);
  }
  Download(const Download&) = delete;
  Download& operator=(const Download&) = delete;
};

/// Completes a downloaded run, so that it resumes in the same run of the service.
void complete_download(const stdfs::path& folder, const std::string& tracker,
                       const std::string& id) {
  if (!stdfs::is_regular_file(folder / "config.yaml"))
    throw Error("the downloaded run has no config.yaml", ExitCode::checkpoint);
  const CheckpointStore checkpoints(folder / "checkpoints", 0);
  if (!checkpoints.newest()) {
    checkpoints.fail_if_damaged();
    throw Error("the downloaded run has no checkpoint", ExitCode::checkpoint);
  }
  TrackerFiles files(folder / "trackers", tracker);
  files.set("id", id);
  skip_uploads(folder, tracker);
}

/// Moves a downloaded run to a name that `output` does not have yet, and returns the name.
std::string place(const stdfs::path& folder, const stdfs::path& output, std::string name,
                  const std::string& id) {
  if (!is_run_name(name)) name = "run";
  std::error_code ignored;
  if (stdfs::exists(output / name, ignored)) name = name.substr(0, 100) + "-" + id.substr(0, 8);
  RunFolder::require_new(output, name);
  fs::rename(folder, output / name);
  return name;
}

}  // namespace

std::string fetch_run(const stdfs::path& output, const std::string& id, Plugins& plugins,
                      const std::vector<SettingsLayer>& settings) {
  check_run_name(id);  // the id becomes part of a path
  fs::make_folders(output);
  for (const std::string& plugin : plugins.names(Kind::tracker)) {
    ComponentSpec spec;
    spec.kind = Kind::tracker;
    spec.plugin = plugin;
    const Download download(output / id);
    const std::string name = plugin + "-0";
    const auto files = std::make_shared<TrackerFiles>(download.folder / "trackers", name);
    const auto tracker =
        make<Tracker>(plugins, spec, RunContext{download.folder.string(), files, settings, {}});
    if (!checked::inactive(*tracker).empty()) continue;
    const std::string run = checked::download(*tracker, id, download.folder);
    if (run.empty()) continue;
    complete_download(download.folder, name, id);
    return place(download.folder, output, run, id);
  }
  return "";
}

}  // namespace dsv3
