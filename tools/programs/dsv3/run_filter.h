// Selects and sorts runs by what their folders say: settings, metrics and state.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/run_record.h>

/// Returns what `key` means for a run, as text; empty if the run has no such value. `key` is a
/// column of `dsv3 runs` (state, step, tokens, duration ...), a metric, whose last value is
/// returned, or a setting such as "train.steps". A component has the name of its plugin, and one in
/// a list has several values: "optimizer" is {"adamw", "muon"}. The prefix of a component may be
/// left out: "attention" is "model.attention".
std::vector<std::string> values_of(const dsv3::RunRecord& run, const std::string& key);

/// A condition such as "optimizer=muon" or "val/loss<4".
class RunFilter {
 public:
  /// Throws dsv3::Error (ExitCode::usage) if `text` is not a condition.
  explicit RunFilter(const std::string& text);
  /// Whether one of the run's values satisfies the condition; for "!=", whether none is equal. A
  /// run without a value satisfies only "!=".
  bool accepts(const dsv3::RunRecord& run) const;
  const std::string& key() const { return key_; }

 private:
  std::string key_, comparison_, value_;
};

/// Sorts by the number or text that `key` means, in descending order after a "-". Runs without a
/// value come last.
void sort_runs(std::vector<dsv3::RunRecord>& runs, const std::string& key);

/// Throws dsv3::Error (ExitCode::usage) with the known keys that are similar if no run has a value
/// for `key`. Accepts anything if there are no runs.
void require_known(const std::vector<dsv3::RunRecord>& runs, const std::string& key);
