// The trackers of a run, and what it records for them besides metrics.
#pragma once

#include <functional>
#include <set>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/records_file.h>
#include <dsv3/runtime/run_folder.h>

#include "track/sender.h"

namespace dsv3 {

/// The trackers that an experiment names, each with its files in the run folder. Leaves out
/// inactive ones, and passes their names and reasons to `inactive`.
std::vector<NamedTracker> make_trackers(
    const Experiment& experiment, Plugins& plugins, const std::filesystem::path& run,
    const std::vector<SettingsLayer>& settings,
    const std::function<void(const std::string& name, const std::string& reason)>& inactive);

/// finished, failed or stopped, as events.jsonl has it.
const char* name_of(RunStatus status);

/// Writes events.jsonl and runs the trackers. Only the first rank of a run does; on the others, all
/// functions do nothing.
class Tracking {
 public:
  Tracking(const RunFolder& folder, bool is_first);

  /// Checks the trackers' settings. Throws dsv3::Error (ExitCode::usage) if they cannot work.
  void check(const RunInfo& info, std::vector<NamedTracker> trackers);
  /// Records how the run starts at `step`, and starts the trackers. `changes` are the settings that
  /// a resumed run has changed.
  void start(const RunInfo& info, int64_t step, const record::Values& changes,
             const std::vector<record::Dataset>& datasets,
             const std::vector<StoredCheckpoint>& checkpoints);
  /// Removes all records, because the run starts again.
  void clear();
  /// Does nothing before start().
  void record(int64_t step, Record::Content content, double time = 0);
  /// Records a file in the run folder, unless it does not exist.
  void record_file(int64_t step, const std::filesystem::path& file);
  /// Records a new checkpoint, and those that it replaces. `time` is that of the step's metrics, so
  /// that a server recognises its loss as one that it has; 0 = unknown.
  void checkpoint_saved(const StoredCheckpoint& checkpoint, double time);
  /// Says that the metrics have grown.
  void notify();
  /// Records the end of the run, and ends the trackers.
  void finish(RunStatus status, int64_t step);

 private:
  void record_checkpoint(const StoredCheckpoint& checkpoint, double time);
  std::string name_of(const std::filesystem::path& path) const;

  const RunFolder& folder_;
  std::optional<RecordsFile> records_;
  std::vector<NamedTracker> trackers_;  // until start()
  std::unique_ptr<TrackerSender> sender_;
  record::Dataset validation_;         // empty if the run has none
  std::set<std::string> checkpoints_;  // paths of the recorded ones that still exist
};

}  // namespace dsv3
