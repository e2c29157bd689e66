// Turns stop signals into an orderly end of a run.
#pragma once

#include <array>
#include <csignal>

#include "support/stop_signals.h"

namespace dsv3 {

/// While this object exists, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU (`ulimit -St`), SIGALRM and
/// SIGVTALRM stop the run with ExitCode::preempted, and SIGINT stops it with ExitCode::interrupted.
/// Before save_first(), there is nothing to save, so the signal ends the process at once. Later,
/// stop_requested() returns true, and a second SIGINT ends the process. If the process ends in a
/// handler, the run's status.json says so (see report_crashes_to()). SIGHUP stays ignored if it
/// was, as under nohup.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// From now on, the training loop stops by itself, after saving.
  void save_first();

 private:
  std::array<struct sigaction, kStopSignals.size()> previous_;
};

/// Whether a signal has requested the end of the run. Code that may take seconds gives up then.
bool stop_requested();

/// Exit code for the requested stop; 0 = none.
int requested_exit_code();

/// The state in status.json of a run that a signal stopped with `exit_code`.
const char* stopped_state(int exit_code);

}  // namespace dsv3
