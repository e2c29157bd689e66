// Lists the differences between two experiments and groups them into factors.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// One key on which two resolved experiments differ; an absent key's value is empty.
struct Difference {
  std::string key;                 ///< dotted path: "model.attention.heads"
  std::string a, b;                ///< values as YAML
  std::string a_origin, b_origin;  ///< "file:line:col", "default" ...; empty for an absent key
  std::string factor;  ///< which the key belongs to; empty = none (name, seed, output ...)
};

struct Comparison {
  std::vector<Difference> differences;  ///< in the order of keys
  std::vector<std::string> factors;     ///< without repetitions
  /// "same experiment", "one factor: ...", "3 factors: ...".
  std::string verdict() const;
};

/// Compares two resolved experiments, defaults included. A different component is one factor
/// together with all its options. Any other key is its own factor, except keys that only name,
/// repeat, observe or store a run.
Comparison compare_experiments(const Experiment& a, const Experiment& b);

/// Keys on which two resolved experiments differ, without factors.
std::vector<Difference> differences(const Resolved& a, const Resolved& b);

/// The values of a resolved experiment that was stored as YAML, untyped.
Resolved read_resolved(const std::string& yaml);

/// One line for every key below `section` (empty = all) on which two resolved experiments differ:
/// "\n  model.hidden: 32 in the run, 64 now". `in_a` and `in_b` name the two sides.
std::string difference_lines(const Resolved& a, const Resolved& b, const std::string& in_a,
                             const std::string& in_b, const std::string& section = "");

}  // namespace dsv3
