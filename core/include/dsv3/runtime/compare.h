// What two experiments differ in, and whether that is one factor.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/config.h>

namespace dsv3 {

/// One key on which two resolved experiments differ; an absent key's value is empty.
struct Difference {
  std::string key;                 ///< dotted path: "model.attention.heads"
  std::string a, b;                ///< values as YAML
  std::string a_origin, b_origin;  ///< "file:line:col", "default" ...; empty for an absent key
  std::string factor;  ///< what it belongs to; empty = no factor (name, seed, output ...)
};

struct Comparison {
  std::vector<Difference> differences;  ///< in the order of keys
  std::vector<std::string> factors;     ///< each once
  /// "same experiment", "one factor: ...", "3 factors: ...".
  std::string verdict() const;
};

/// Compares two experiments as they are resolved, defaults included. A component that is swapped is
/// one factor with all its options; otherwise each key is one, except those that only name, repeat,
/// watch or store a run.
Comparison compare_experiments(const ExperimentRequest& a, const ExperimentRequest& b,
                               Catalog& catalog);

/// Keys on which two texts of Experiment::resolved differ, without origins and factors.
std::vector<Difference> compare_resolved(const std::string& a, const std::string& b);

/// A resolved experiment's value at a dotted path, with its origin.
struct ResolvedValue {
  std::string key, value, origin;
};
/// Every value of a resolved experiment in order; components of lists are numbered when there are
/// several.
std::vector<ResolvedValue> resolved_values(const ExperimentRequest& request, Catalog& catalog);
/// The same of a text of Experiment::resolved.
std::vector<ResolvedValue> resolved_values(const std::string& resolved);

}  // namespace dsv3
