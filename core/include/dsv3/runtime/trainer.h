// One training run, from the request on the command line to the exit code.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/plugins.h>

namespace dsv3 {

/// What `dsv3-run` was asked to do.
struct RunRequest {
  ExperimentRequest experiment;
  std::string run_name;              ///< new run of this name; empty = a made one
  std::string run_id;                ///< go on with this run folder
  bool resume_auto = false;          ///< with run_name: go on if it is there
  std::filesystem::path from;        ///< new run with the weights of this checkpoint
  std::filesystem::path output;      ///< folder of run folders; empty = the experiment's
  std::vector<std::string> command;  ///< argv, for provenance
  bool quiet = false;                ///< no progress display
};

/// Trains. Returns the exit code of a run that ended as asked (0, 75, 130); throws dsv3::Error
/// otherwise.
int train(const RunRequest& request, Plugins& plugins);

/// Prints parameters, FLOPs, memory and time of the experiment; allocates nothing. `memory_limit`
/// in bytes: says whether and how it fits.
void dry_run(const Experiment& experiment, Plugins& plugins, std::optional<int64_t> memory_limit);

/// An experiment in which `auto` device, precision and threads are replaced by what this machine
/// gives, so that a resumed run keeps them.
Experiment resolve_machine(const ExperimentRequest& request, Plugins& plugins);

/// Optimizer steps of the experiment: train.steps, or train.tokens divided by tokens a step,
/// rounded up.
int64_t total_steps(const Experiment& experiment);

}  // namespace dsv3
