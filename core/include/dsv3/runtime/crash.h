// Reports the component in which a process crashed.
#pragma once

#include <filesystem>

namespace dsv3 {

/// While an object of this class exists, a process that crashes with a fault signal (SIGSEGV,
/// SIGBUS, SIGFPE, SIGILL, SIGABRT), std::terminate, or exit() inside a component prints one line
/// to stderr with the component, the optimizer step, the component's origin and its library, and
/// writes the same message to the run's status.json. The signal keeps its effect (core dump, exit
/// status). exit() and quick_exit() then use ExitCode::plugin instead of the exit code passed to
/// them. _exit() cannot be intercepted. Construct it in main, on the thread that trains, before
/// plugins are loaded.
class CrashReports {
 public:
  CrashReports();
  ~CrashReports();
  CrashReports(const CrashReports&) = delete;
  CrashReports& operator=(const CrashReports&) = delete;
};

/// From now on, a crash also prints a backtrace to stderr.
void print_backtraces();

/// From now on, a crash is recorded in this status.json. An empty path turns this off.
void report_crashes_to(const std::filesystem::path& status);

}  // namespace dsv3
