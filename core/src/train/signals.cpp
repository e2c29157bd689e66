#include "train/signals.h"

#include <array>
#include <atomic>
#include <csignal>
#include <unistd.h>

namespace dsv3 {
namespace {

constexpr std::array kSignals{SIGTERM, SIGUSR2, SIGINT};
volatile std::sig_atomic_t requested_code = 0;
std::array<struct sigaction, kSignals.size()> previous;

extern "C" void on_signal(int signal) {
  const int code = int(signal == SIGINT ? ExitCode::interrupted : ExitCode::preempted);
  if (signal == SIGINT && requested_code == code) _exit(code);
  requested_code = code;
}

}  // namespace

SignalGuard::SignalGuard() {
  requested_code = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous[i]);
}

SignalGuard::~SignalGuard() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

int SignalGuard::requested() {
  return requested_code;
}

}  // namespace dsv3
