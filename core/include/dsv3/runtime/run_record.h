// Reads run folders for people who look at runs. Nothing here locks, changes or creates a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/support/json.h>

namespace dsv3 {

/// Points of a curve, in ascending order of x. y may be NaN or infinite.
struct Series {
  std::vector<double> x, y;
};

/// What metrics.jsonl records, over steps.
struct RunMetrics {
  std::map<std::string, Series> by_name;  ///< without step, tokens and time
  Series tokens;                          ///< training tokens so far
  Series time;                            ///< seconds since the epoch
  int64_t damaged_lines = 0;              ///< without an incomplete last line

  /// Returns the last value, or NaN if the metric was never recorded.
  double last(const std::string& name) const;
};

/// Reads metrics.jsonl, or only the lines in its last `tail` bytes. A line that dsv3 has not
/// written is counted and left out. If steps go back, as in a file joined from two, later lines
/// replace earlier ones. Returns nothing for a file that does not exist. Throws dsv3::Error if it
/// cannot be read.
RunMetrics read_metrics(const std::filesystem::path& run, uint64_t tail = UINT64_MAX);

/// What a run folder says about its run. A value that is unknown is NaN, empty or 0.
struct RunRecord {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  std::filesystem::path path;
  std::string name;        ///< the folder's name
  std::string experiment;  ///< the experiment's name
  /// running, finished, failed, preempted or interrupted, as in status.json; crashed if
  /// it says running, but no process holds the run's lock; damaged if it cannot be read
  std::string state;
  std::string message;         ///< of status.json, such as the error of a failed run
  int64_t step = 0;            ///< the last one that status.json or metrics.jsonl records
  int64_t steps = 0;           ///< that the experiment asks for
  double tokens = 0;           ///< so far
  double started = kUnknown;   ///< seconds since the epoch
  double updated = kUnknown;   ///< when the run last wrote its status or metrics, likewise
  double duration = kUnknown;  ///< seconds for which the run's processes ran
  Resolved resolved;
  Json provenance = Json::object();
  RunMetrics metrics;  ///< all lines, or the last ones
  /// What is wrong with the folder: one sentence for each file.
  std::vector<std::string> problems;
};

enum class ReadMetrics { last, all };

/// Reads a run folder. Reports damaged files in `problems`; never throws because of them. With
/// ReadMetrics::last, reads no more of metrics.jsonl than the last values need.
RunRecord read_run(const std::filesystem::path& run, ReadMetrics extent);

/// Whether the folder contains a file that only runs have.
bool is_run_folder(const std::filesystem::path& folder);

/// Returns the run folders directly inside `folder`, by name. Throws dsv3::Error if it cannot be
/// listed.
std::vector<std::filesystem::path> find_runs(const std::filesystem::path& folder);

/// The seconds for which the run had been running at each line of its metrics, without the pauses
/// between the processes that resumed it.
Series running_time(const RunRecord& run);

}  // namespace dsv3
