// Reports the component in which a process crashed.
#pragma once

#include <filesystem>

namespace dsv3 {

/// While an object of this class exists, a process that crashes with a fault signal (SIGSEGV,
/// SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS, SIGTRAP, SIGQUIT), std::terminate, or exit() inside a
/// component prints one line to stderr with the component, the optimizer step, the component's
/// origin and its library, and writes the same message to the run's status.json. The process still
/// dies from the signal (core dump, exit status). After exit() or quick_exit(), the exit code is
/// ExitCode::plugin instead of the one passed. _exit() cannot be intercepted. Construct the object
/// in main(), on the training thread, before plugins are loaded.
class CrashReports {
 public:
  CrashReports();
  ~CrashReports();
  CrashReports(const CrashReports&) = delete;
  CrashReports& operator=(const CrashReports&) = delete;
};

/// Makes later crashes also print a backtrace to stderr.
void print_backtraces();

/// Makes later crashes, and end_run(), also write their message to this status.json. An empty path
/// turns this off.
void report_crashes_to(const std::filesystem::path& status);

/// Ends the process in the handler of a stop signal. Prints "error: stopped by SIGTERM <when>" and
/// writes it to the status.json of report_crashes_to(), with `state` and `exit_code`.
[[noreturn]] void end_run(const char* state, int signal, const char* when, int exit_code);

/// Exists while the run's status.json is replaced. A crash on another thread waits for this object
/// before it writes its report, which would otherwise be lost. The constructor never returns if a
/// crash was reported, because another thread is about to end the process.
class StatusWriter {
 public:
  StatusWriter();
  ~StatusWriter();
  StatusWriter(const StatusWriter&) = delete;
  StatusWriter& operator=(const StatusWriter&) = delete;
};

}  // namespace dsv3
