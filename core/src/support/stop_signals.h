// The signals that ask a run to stop.
#pragma once

#include <array>
#include <csignal>

namespace dsv3 {

inline constexpr std::array kStopSignals{SIGTERM, SIGHUP,  SIGUSR1,   SIGUSR2,
                                         SIGXCPU, SIGALRM, SIGVTALRM, SIGINT};

}  // namespace dsv3
