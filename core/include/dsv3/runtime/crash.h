// What a process leaves to read when a plugin takes it down.
#pragma once

#include <filesystem>

namespace dsv3 {

/// While one lives, a process that dies of a fault signal (SIGSEGV, SIGBUS, SIGFPE, SIGILL,
/// SIGABRT), of std::terminate, or by exit() writes one line to stderr that names the component it
/// was in, the optimizer step, the place in the experiment and the library; and so does the run's
/// status.json. The signal's own effect stays (core dump, exit status); exit() and quick_exit() end
/// with ExitCode::plugin instead of what was passed to them. _exit() cannot be seen. Make it in
/// main, before plugins are loaded, on the thread that trains.
class CrashReports {
 public:
  CrashReports();
  ~CrashReports();
  CrashReports(const CrashReports&) = delete;
  CrashReports& operator=(const CrashReports&) = delete;
};

/// A crash from now on is told in this status.json; an empty path: in none.
void report_crashes_to(const std::filesystem::path& status);

}  // namespace dsv3
