// What the training loop reports to the parts of the core that act after a step.
#pragma once

#include <memory>
#include <optional>

#include <dsv3/sdk/tracker.h>

#include "train/step.h"

namespace dsv3 {

/// The end of a step, as the training loop reports it.
struct StepReport {
  int64_t step = 0;                    ///< number of completed steps; 0 = before the first step
  bool last = false;                   ///< the run has reached its end
  bool recorded = false;               ///< the step was validated and recorded before a signal
                                       ///< stopped the run
  bool stopping = false;               ///< a signal stops the run here, to be resumed later; set
                                       ///< by an observer that a signal has cut short
  const StepResult* result = nullptr;  ///< null at step 0
  double lr_factor = 0;
  std::optional<double> val_loss = {};  ///< set by the validation observer
};

/// Acts on the events of a run. The loop calls the observers in a fixed order: validation, metrics,
/// samples, checkpoints, status. If a callback ends the run, step_ended() is called a second time
/// for the same step, with `last`. An observer that may take seconds gives up if stop_requested(),
/// and sets StepReport::stopping and RunState::cut_short.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void run_started() {}
  virtual void step_ended(StepReport&) {}
  virtual void run_ended(RunStatus) {}
};

/// Validates before the first step, every `validation.every` steps and at the end.
std::unique_ptr<Observer> validation_observer(Training& training);
/// Records metrics, sends them to trackers and callbacks, and shows progress.
std::unique_ptr<Observer> metrics_observer(Training& training, bool resumed, bool quiet);
/// Generates text every `samples.every` steps and at the end.
std::unique_ptr<Observer> samples_observer(Training& training);
/// Saves every `checkpoint.every` steps, at the end, and when the run stops.
std::unique_ptr<Observer> checkpoint_observer(Training& training);
/// Keeps the step in status.json up to date.
std::unique_ptr<Observer> status_observer(Training& training);

}  // namespace dsv3
