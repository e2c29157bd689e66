// The files that a run leaves, without the parts that differ from run to run.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

/// The content of a finished run folder, for comparison with another run of the same experiment.
struct LeftBehind {
  std::vector<std::string> metrics;      ///< lines of metrics.jsonl, without times and rates
  std::vector<std::string> checkpoints;  ///< names of checkpoint folders
  std::string samples;                   ///< files of samples, with their names
  std::string tensors, state;            ///< file and manifest state of the newest checkpoint
  std::string status, hashes;            ///< state, exit code and step; initial weights and data

  explicit LeftBehind(const std::filesystem::path& run);
  /// The first part in which `other` differs; empty = they are identical.
  std::string difference(const LeftBehind& other) const;
};

/// The first inconsistency in a finished run: temporary files that were left, or values of
/// metrics.jsonl that metrics.csv lacks or contains twice; empty = none.
std::string fault_in(const std::filesystem::path& run);
