// Runs conformance checks on plugins in child processes. A component that crashes, hangs or exits
// is reported and does not end the calling process.
#pragma once

#include <chrono>
#include <filesystem>

#include <dsv3/runtime/plugins.h>

namespace dsv3::conformance {

struct Request {
  std::filesystem::path library;
  std::string component;                 ///< KIND/NAME; empty = all components in the library
  std::vector<std::string> options;      ///< component options as key=value
  std::vector<std::string> only;         ///< names of the checks to run; empty = all
  bool gpu = false;                      ///< whether to compare a GPU with the CPU as well
  std::chrono::seconds time_limit{120};  ///< per check
  SearchLevels levels;                   ///< search paths for other plugins that a check needs
  std::filesystem::path folder;  ///< folder that components may write to; set by check_library
};

/// The outcome of one check.
struct Result {
  std::string component;  ///< KIND/NAME; empty if the check applies to the whole library
  std::string check, promise;
  bool kept = false;
  std::string text;          ///< why the check failed
  std::string same_as = {};  ///< earlier check of the component that failed with the same error
  bool tested = true;        ///< false = the fake device cannot run an operator; see `notes`
  std::vector<std::string> notes = {};  ///< what the author should know, even if the check passed
};

/// Runs the requested checks. Each component runs in a separate process, and a process that crashes
/// is replaced. `on_result` is called as results arrive. Returns the number of failed checks, which
/// excludes untested ones.
/// Throws dsv3::Error for an invalid request, such as a missing file, an unknown component or
/// invalid options, and if a GPU is requested but cannot be used.
int check_library(const Request& request, const std::function<void(const Result&)>& on_result);

}  // namespace dsv3::conformance
