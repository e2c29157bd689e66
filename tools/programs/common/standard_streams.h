// Standard input, output and error of `dsv3` and `dsv3-run`.
#pragma once

/// Calls `run` with the command line and returns the exit code of the process: that of `run`, or
/// that of the error it throws, which is printed on standard error.
///
/// All that is written to std::cout and std::cerr is made printable (dsv3/runtime/printable.h). If
/// writing to standard output fails, std::cout throws dsv3::Error (ExitCode::failed), so a command
/// stops early. SIGPIPE and SIGXFSZ are ignored, so such a write fails instead of ending the
/// process.
///
/// A standard descriptor that is closed is opened first, so that no file gets its number. Reading
/// standard input then returns no text, writing to standard output fails, and what is written to
/// standard error is lost.
int run_program(int argc, char** argv, int (*run)(int, char**));

enum class Output {
  printable,  ///< text for people, the default
  escaped,    ///< as `printable`, but without replacing hidden values; for YAML
  raw,        ///< exactly what is written
};
/// How later output to std::cout is written. Call it before the first output.
void set_output(Output output);

/// Makes failed writes to std::cout no error, for a command whose purpose is not its output.
void allow_failing_output();
