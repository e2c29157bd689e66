// One training run, from the command line's request to the exit code.
#pragma once

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/plugins.h>

namespace dsv3 {

/// The command line of `dsv3-run`.
struct RunRequest {
  ExperimentRequest experiment;
  std::string run_name;              ///< name of a new run; empty = a random one
  std::string run_id;                ///< run folder to resume
  bool resume_auto = false;          ///< with run_name: resume the run if it exists
  std::filesystem::path from;        ///< new run with the weights of this model
  std::filesystem::path output;      ///< folder of run folders; empty = the experiment's
  std::vector<std::string> command;  ///< argv, for provenance
  bool quiet = false;                ///< no progress display
};

/// Trains. Returns the exit code of a run that finished or was stopped (0, 75, 130); throws
/// dsv3::Error otherwise.
int train(const RunRequest& request, Plugins& plugins);

/// What `preflight` checks: the configuration alone, or also that its files and its GPU exist.
enum class PreflightScope { configuration = 1, everything };

/// Checks everything that needs no training: builds layers, optimizers, schedule and strategy on
/// the meta device, reads the tokenizer, and looks at input paths and the device. Data and trackers
/// are not built, since their constructors may open files and connections. Writes nothing. Throws
/// one dsv3::Error that lists every problem with its location and a fix, first those of the
/// configuration (ExitCode::usage), then missing inputs (ExitCode::data if nothing else is wrong).
void preflight(const Experiment& experiment, Plugins& plugins, PreflightScope scope);

/// Prints parameters, FLOPs, memory and time of the experiment without allocating its model. With
/// `memory_limit` (bytes), also whether it fits and what would make it fit.
void dry_run(const Experiment& experiment, Plugins& plugins, std::optional<int64_t> memory_limit);

/// Optimizer steps of the experiment: train.steps, or train.tokens divided by the tokens per step,
/// rounded up.
int64_t total_steps(const Experiment& experiment);

}  // namespace dsv3
