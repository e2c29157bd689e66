// Rules that read the metrics of logged steps and name the likely cause of a fault.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/tracker.h>

#include "options.h"

namespace health {

/// Counts the signs of each cause over logged steps. Its state is small and saved in checkpoints.
class Alarms {
 public:
  explicit Alarms(const Options& options) : options_(options) {}

  /// Reads the metrics of a logged step. Returns the warnings that are due, usually none. Ignores
  /// steps that it has already seen.
  std::vector<std::string> observe(const dsv3::Event& event);
  /// Number of rules whose sign was present in the last logged step and lasts long enough for a
  /// warning.
  int64_t active() const { return active_; }

  nlohmann::json state() const;
  void load(const nlohmann::json& state);

 private:
  struct Count {
    int64_t seen = 0, missed = 0;  ///< logged steps in a row with and without the sign
    int64_t warned_at = -1;        ///< step of the last warning; -1 = none
    bool gone = true;              ///< whether the sign has been absent for long since then
  };

  Options options_;
  std::map<std::string, Count> counts_;   // by rule
  std::map<std::string, double> memory_;  // values that rules compare with, by metric
  int64_t active_ = 0;
  int64_t last_step_ = -1;
};

}  // namespace health
