// Names that MLflow accepts.
#pragma once

#include <map>
#include <set>
#include <string>

namespace mlflow {

/// Maps names of metrics, parameters and tags to names that MLflow accepts: up to 250 of letters,
/// digits, `_ - . space : /`. Most names stay as they are. Two different names never get the same
/// one: the second is numbered.
class Names {
 public:
  /// Returns the name for `name`, always the same.
  std::string operator()(const std::string& name);
  /// The names that were changed, by the new one. A later process must learn them before it maps
  /// others.
  const std::map<std::string, std::string>& changed() const { return changed_; }
  void learn(const std::map<std::string, std::string>& changed);

 private:
  std::map<std::string, std::string> known_;    // new name by original
  std::map<std::string, std::string> changed_;  // original by new name
  std::set<std::string> used_;
};

}  // namespace mlflow
