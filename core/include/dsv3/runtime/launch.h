// Starts the ranks of a run on this machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/ranks.h>

namespace dsv3 {

struct LaunchRequest {
  std::vector<std::string> command;  ///< argv of this program, which every rank gets too
  int64_t ranks = 1;
  int64_t max_restarts = 0;
  /// Called with the run folder that rank 0 has announced (may be empty), the exit code, and why
  /// the ranks failed, if rank 0 could not record that itself.
  std::function<void(const std::filesystem::path& run, int code, const std::string& cause)>
      on_failure = {};
};

/// Whether this process has to call launch(): `ranks` (of --num_gpus) is above one or restarts are
/// requested, and no launcher has started this process as one of several ranks. Throws dsv3::Error
/// (ExitCode::usage) if the flags contradict the launcher.
bool must_launch(const RankContext& context, std::optional<int64_t> ranks, int64_t max_restarts);

/// Starts this program once for each rank and waits for all of them. The processes get the same
/// arguments, and find each other through the variables of torchrun, which rank_context() reads.
///
/// Rank 0 has the standard output and error of this process. What the other ranks write there is
/// printed only if they fail, as "rank 1: ...". Stop signals are passed on to each rank once. If a
/// rank fails, the others have 3 s to end by themselves, get SIGTERM, and a second later SIGKILL.
/// If this process is killed, so are the ranks.
///
/// Returns the exit code of the first rank that failed for another reason than a lost peer, or
/// ExitCode::peer_lost if there is none, for example because a signal killed a rank. In the latter
/// case, unless a stop signal arrived, all ranks are started again, up to `max_restarts` times.
/// Throws dsv3::Error if a process cannot be started.
int launch(const LaunchRequest& request);

/// Gives launch() the folder of the run that this process trains, so that ranks which are started
/// again resume it, and so that it can record why they failed. Does nothing on other ranks than 0,
/// and without launch().
void announce_run(const std::filesystem::path& folder);

/// The run that the ranks trained when they failed: they continue as with `--run_name NAME --resume
/// auto`. Empty if launch() has not started them again, or if rank 0 had not announced a run.
std::string announced_run();

}  // namespace dsv3
