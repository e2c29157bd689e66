// Finds the run to resume or to branch from, and compares what it was started with to what it
// resumes with.
#pragma once

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/runtime/config.h>
#include <dsv3/runtime/plugins.h>

namespace dsv3 {

/// Loads the experiment of the run in the folder `run`, with the settings in `changes`. Uses the
/// tokenizer files in the run folder. Libraries that the experiment names must be on the search
/// path or among `known_libraries`.
Experiment experiment_of_run(const std::filesystem::path& run, Plugins& plugins,
                             const ExperimentRequest& changes = {},
                             const std::vector<std::string>& known_libraries = {});

/// Returns the settings in which `requested` differs from `stored`: [{"key", "before", "after"}].
Json changes_of(const Experiment& stored, const Experiment& requested);

/// Returns changes_of() the experiment of the run in the folder `run`. A resumed run may change
/// what does not define the experiment: its length, how and where it computes, and what it logs and
/// saves. Throws dsv3::Error (ExitCode::usage) that lists all other differences.
Json accepted_changes(const std::filesystem::path& run, const Experiment& stored,
                      const Experiment& requested, Plugins& plugins);

/// Compares `experiment` with the one in a checkpoint from which it resumes. Throws like
/// accepted_changes(). Warns if plugin libraries, LibTorch or the CPU's capability differ, because
/// the run may then not continue bit-identically.
void compare_with_checkpoint(const StoredCheckpoint& checkpoint, const Experiment& experiment,
                             Plugins& plugins);

/// A run and one of its checkpoints.
struct BranchPoint {
  std::filesystem::path run;
  StoredCheckpoint checkpoint;
};

/// Requires the run in the folder `run`, which is to be resumed, to have been branched from
/// `branch`, as --branch names it. Throws dsv3::Error (ExitCode::usage).
void require_branched_from(const std::filesystem::path& run, const std::string& branch,
                           const std::filesystem::path& output);

/// Requires the run in the folder `run`, which is to be resumed, to have been started from the
/// model `from`. Throws dsv3::Error (ExitCode::usage).
void require_started_from(const std::filesystem::path& run, const std::filesystem::path& from);

/// Finds the checkpoint for `--branch RUN[@STEP]`. RUN is a name in `output`, or a path if it
/// contains '/'. Without STEP, takes the newest intact checkpoint. Throws dsv3::Error with
/// ExitCode::usage if the run or the step does not exist.
BranchPoint find_branch_point(const std::string& branch, const std::filesystem::path& output);

}  // namespace dsv3
