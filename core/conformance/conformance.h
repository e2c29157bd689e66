// Runs the conformance checks of plugins in child processes, so that a component that crashes,
// hangs or exits is reported and does not end this process.
#pragma once

#include <chrono>
#include <filesystem>

#include <dsv3/runtime/plugins.h>

namespace dsv3::conformance {

struct Request {
  std::filesystem::path library;
  std::string component;                 ///< KIND/NAME; empty = all that the library provides
  std::vector<std::string> options;      ///< key=value, for the component
  std::vector<std::string> only;         ///< names of checks; empty = all
  std::chrono::seconds time_limit{120};  ///< per check
  SearchLevels levels;                   ///< where other plugins are found
  std::filesystem::path folder;          ///< where components may write; set by check_library
};

/// The outcome of one check.
struct Result {
  std::string component;  ///< KIND/NAME; empty = the library as a whole
  std::string check, promise;
  bool kept = false;
  std::string text;  ///< why the promise was broken
};

/// Runs every check. Each component gets its own process, and a new one after each that died.
/// `on_result` is called as results arrive. Returns the number of broken promises. Throws
/// dsv3::Error for a request that cannot be carried out: no such file or component, options that do
/// not fit.
int check_library(const Request& request, const std::function<void(const Result&)>& on_result);

}  // namespace dsv3::conformance
