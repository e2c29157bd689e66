// What a run leaves behind, without what differs from run to run.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

/// A finished run folder, for comparison with another of the same experiment.
struct LeftBehind {
  std::vector<std::string> metrics;      ///< lines of metrics.jsonl, of all but times and rates
  std::vector<std::string> checkpoints;  ///< names of their folders
  std::string tensors, state;  ///< of the newest checkpoint: its file, its manifest's state
  std::string status, hashes;  ///< state, exit code and step; first values and data

  explicit LeftBehind(const std::filesystem::path& run);
  /// The first part in which the other one differs; empty = none does.
  std::string difference(const LeftBehind& other) const;
};

/// What is wrong inside one finished run: temporary files that were left, values of metrics.jsonl
/// that metrics.csv lacks or has twice; empty = nothing.
std::string fault_in(const std::filesystem::path& run);
