// Starts or resumes one training run and returns the exit code.
#pragma once

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

/// Arguments of `dsv3-run`.
struct RunRequest {
  ExperimentRequest experiment;
  std::string run_name;          ///< name of a new run; empty = chosen from the experiment's name
  std::string run_id;            ///< run folder to resume
  bool resume_auto = false;      ///< resume the run `run_name` if it exists, else create it
  std::filesystem::path from;    ///< start a new run with the weights of this model
  std::string branch;            ///< RUN or RUN@STEP: start a new run from this run's state
  std::filesystem::path output;  ///< parent folder of the run folder; empty = as in the
                                 ///< experiment
  std::vector<std::string> command;                  ///< argv, for provenance
  std::string usual_output = "runs";                 ///< where `--run_id` alone looks for runs
  std::vector<std::string> resume_flags;             ///< other flags that resuming the run needs
  std::vector<SettingsLayer> tracker_settings = {};  ///< of this machine
  RankContext ranks = {};                            ///< of this process
  bool profile = false;  ///< write a trace of a few steps to the run folder
  bool quiet = false;    ///< show no progress, and ignore the experiment's log.level
};

/// Trains, and returns the exit code of a run that finished or was stopped: 0, 75 or 130.
int train(const RunRequest& request, Plugins& plugins);

/// What `preflight` checks: only the configuration, or also whether its files and its GPU exist.
enum class PreflightScope { configuration = 1, everything };

/// Checks everything that can be checked without training: builds layers, optimizers, schedule and
/// strategy on the meta device, reads the tokenizer, and looks for input paths and the device. Does
/// not construct data or trackers, which may open files and connections. Writes nothing. Throws one
/// dsv3::Error that lists every problem with its location and a fix: first configuration errors
/// (ExitCode::usage), then missing inputs (ExitCode::data if there are no other problems).
/// `ranks` is the number of ranks with which the experiment is to be run.
void preflight(const Experiment& experiment, Plugins& plugins, PreflightScope scope,
               int64_t ranks = 1);

/// Checks everything about the request that requires no training: the experiment (with
/// `preflight`), the name of a new run and, unless `scope` is `configuration`, the model given with
/// --from. Writes nothing. Returns the experiment. Throws dsv3::Error.
Experiment check(const RunRequest& request, Plugins& plugins, PreflightScope scope);

/// Replaces `strategy: auto` by the first strategy whose memory estimate fits, from replicating
/// everything to sharding everything, and logs the estimates. Uses the last one if none fits.
/// `ranks` is the number of ranks, and `local_ranks` that of ranks that share this machine.
void choose_strategy(Experiment& experiment, Plugins& plugins, int64_t ranks, int64_t local_ranks);

/// Prints an experiment's parameters, FLOPs, memory and time on `ranks` ranks without allocating
/// its model. With `memory_limit` (bytes per rank), also prints whether the experiment fits and
/// which settings would make it fit.
void dry_run(const Experiment& experiment, Plugins& plugins, std::optional<int64_t> memory_limit,
             int64_t ranks = 1);

/// Returns the number of optimizer steps: train.steps, or train.tokens / tokens per step, rounded
/// up.
int64_t total_steps(const Experiment& experiment);

}  // namespace dsv3
