#include "train/signals.h"

#include <dsv3/runtime/crash.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

volatile std::sig_atomic_t requested_code = 0;
volatile std::sig_atomic_t saves_first = 0;

extern "C" void on_signal(int signal) {
  const int code = int(signal == SIGINT ? ExitCode::interrupted : ExitCode::preempted);
  if (!saves_first) end_run(stopped_state(code), signal, "while the run was starting", code);
  if (signal == SIGINT && requested_code == code)
    end_run(stopped_state(code), signal, "again, before it was saved", code);
  requested_code = code;
}

}  // namespace

StopSignals::StopSignals() {
  requested_code = 0;
  saves_first = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigfillset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < kStopSignals.size(); ++i) {
    sigaction(kStopSignals[i], &action, &previous_[i]);
    if (kStopSignals[i] == SIGHUP && previous_[i].sa_handler == SIG_IGN)
      sigaction(SIGHUP, &previous_[i], nullptr);
  }
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < kStopSignals.size(); ++i)
    sigaction(kStopSignals[i], &previous_[i], nullptr);
}

void StopSignals::save_first() {
  saves_first = 1;
}

bool stop_requested() {
  return requested_code != 0;
}

int requested_exit_code() {
  return requested_code;
}

const char* stopped_state(int exit_code) {
  return exit_code == int(ExitCode::interrupted) ? "interrupted" : "preempted";
}

}  // namespace dsv3
