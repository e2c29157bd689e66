// A run's output files, without the parts that differ from run to run.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

/// The content of a finished run folder, for comparison with another run of the same experiment.
struct LeftBehind {
  std::vector<std::string>
      metrics;  ///< lines in metrics.jsonl, without times, rates and the machine's
  std::vector<std::string> checkpoints;  ///< checkpoint folder names
  std::string samples;                   ///< sample file names and content
  std::string tensors;                   ///< content of the newest checkpoint's tensor files
  std::string state;                     ///< state in the newest checkpoint's manifest
  std::string status;                    ///< final state, exit code and step
  std::string hashes;                    ///< hashes of the initial weights and the data

  explicit LeftBehind(const std::filesystem::path& run);
  /// Describes the first difference from `other`, or returns "" if there is none.
  std::string difference(const LeftBehind& other) const;
};

/// Describes the first inconsistency in a finished run: leftover temporary files, or a metrics.csv
/// that has torn or duplicate rows or does not match metrics.jsonl. Returns "" if the run is
/// consistent.
std::string fault_in(const std::filesystem::path& run);
