// The training loop.
#pragma once

#include <memory>
#include <vector>

#include "train/observer.h"

namespace dsv3 {

/// Trains a run to its last step and reports every step to the observers.
class Trainer {
 public:
  Trainer(Training& training, bool resumed, bool quiet);
  /// Trains until the last step, a signal or a callback ends the run. Returns the exit code. Call
  /// it only once.
  int run();

 private:
  int train();
  /// Ends the run after the reported step, because a callback requested it.
  void end_early(StepReport& report, const std::string& reason);
  void publish(StepReport& report);
  void end(RunStatus status);
  void announce() const;

  Training& run_;
  Stepper stepper_;
  std::vector<std::unique_ptr<Observer>> observers_;
};

}  // namespace dsv3
