// The training loop.
#pragma once

#include <memory>
#include <vector>

#include "train/observer.h"
#include "train/profile.h"

namespace dsv3 {

/// Trains a run to its last step and reports every step to the observers.
class Trainer {
 public:
  /// `profiled`: see Profile.
  Trainer(Training& training, bool resumed, bool quiet, bool profiled);
  /// Trains until the last step, a signal or a callback ends the run. Returns the exit code. Call
  /// it only once.
  int run();
  /// Reports the end of the run to callbacks and trackers, and waits for the trackers, for 10 s at
  /// most. Does nothing if it was called before, or if run() was not.
  void end(RunStatus status);

 private:
  int train();
  /// Ends the run after the reported step, because a callback requested it.
  void end_early(StepReport& report, const std::string& reason);
  /// Reports a step to the observers. Returns the exit code if a signal ends the run here; 0 = it
  /// does not.
  int publish(StepReport& report);
  void notify(StepReport& report);
  void announce() const;

  Training& run_;
  Stepper stepper_;
  std::optional<Profile> profile_;
  bool running_ = false;  // observers know that the run has started
  std::vector<std::unique_ptr<Observer>> observers_;
};

}  // namespace dsv3
