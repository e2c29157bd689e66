// Signals only set a flag, which the training loop reads after each step.
#pragma once

#include <dsv3/sdk/error.h>

namespace dsv3 {

/// While a guard lives, SIGTERM and SIGUSR2 request preemption and SIGINT an interrupt; a second
/// SIGINT ends the process immediately. The destructor restores the previous handlers.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
  /// 0 = continue; else the exit code to stop with (preempted or interrupted).
  static int requested();
};

}  // namespace dsv3
