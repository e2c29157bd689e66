// Signals only set a flag; the training loop looks at it at the end of a step.
#pragma once

#include <dsv3/sdk/error.h>

namespace dsv3 {

/// While one lives: SIGTERM and SIGUSR2 ask for preemption, SIGINT for an interrupt; a second
/// SIGINT ends the process at once. The former handlers come back with the destructor.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
  /// 0 = go on; else the exit code to stop with (preempted or interrupted).
  static int requested();
};

}  // namespace dsv3
