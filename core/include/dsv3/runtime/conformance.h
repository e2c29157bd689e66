// Runs the conformance suite of plugins in child processes, so that a component that crashes, hangs
// or exits is reported and never fatal.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>

namespace dsv3::conformance {

struct Request {
  std::filesystem::path library;
  std::string component;                     ///< KIND/NAME; empty = all that the library provides
  std::vector<std::string> options;          ///< key=value, for the component
  std::vector<std::string> only;             ///< names of checks; empty = all
  std::chrono::seconds time_limit{120};      ///< a check
  int64_t memory_limit = int64_t{12} << 30;  ///< bytes of address space
  std::vector<std::string> plugin_words;     ///< the child's command line: --plugin-path ...
  std::filesystem::path folder;              ///< for run_child: where components may write files
  SearchLevels levels;                       ///< for run_child: where other plugins are found
};

/// What became of one check.
struct Result {
  std::string component;  ///< KIND/NAME; empty = of the library as a whole
  std::string check, promise;
  bool kept = false;
  std::string text;  ///< why not
};

/// Runs every check, each component in a process of its own and a new one after each that died.
/// `on_result` is called as results come. Returns the number of promises that were not kept. Throws
/// dsv3::Error for a request that cannot be carried out: no such file or component, options that do
/// not fit.
int check_library(const Request& request, const std::function<void(const Result&)>& on_result);

/// The child's side: runs checks `first`, ... of the component (empty: only loads the library) and
/// reports to file descriptor `report`. Returns its exit code.
int run_child(const Request& request, size_t first, int report);

}  // namespace dsv3::conformance
