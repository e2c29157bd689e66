// Lists the differences between two experiments and groups them into factors.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// A configuration key whose value differs between two resolved experiments. If one of them lacks
/// the key, its value is empty.
struct Difference {
  std::string key;                 ///< dotted path: "model.attention.heads"; compare_experiments
                                   ///< writes "optimizer.adamw.lr" if the lists of optimizers have
                                   ///< different components
  std::string a, b;                ///< values as YAML
  std::string a_origin, b_origin;  ///< such as "file:line:col" or "default"; empty if the key is
                                   ///< absent
  std::string factor;  ///< experimental factor to which the key belongs; empty = none (name, seed,
                       ///< output ...)
};

struct Comparison {
  std::vector<Difference> differences;  ///< in the order of the experiment's keys
  std::vector<std::string> factors;     ///< without repetitions
  /// Returns "same experiment", "one factor: ..." or, for example, "3 factors: ...".
  std::string verdict() const;
};

/// Compares two resolved experiments, including defaults. A replaced component counts as one factor
/// together with all its options. Every other key is a factor by itself, also an option of a
/// component that both lists contain when one of several components is replaced. Keys that only
/// affect a run's name, seed, monitoring or storage do not count as factors.
Comparison compare_experiments(const Experiment& a, const Experiment& b);

/// Lists the keys whose values differ between two resolved experiments. Does not assign factors.
std::vector<Difference> differences(const Resolved& a, const Resolved& b);

/// Parses a resolved experiment stored as YAML, without checking the types of its values.
Resolved read_resolved(const std::string& yaml);

/// Lists the keys below `section` (empty = all) whose values differ between two resolved
/// experiments, one per line: "\n model.hidden: 32 in the run, 64 now". `in_a` and `in_b` are the
/// suffixes after the values (here "in the run" and "now").
std::string difference_lines(const Resolved& a, const Resolved& b, const std::string& in_a,
                             const std::string& in_b, const std::string& section = "");

}  // namespace dsv3
