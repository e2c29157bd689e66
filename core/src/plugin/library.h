// Plugin libraries in this process: loaded once, checked before any code of theirs runs, never
// unloaded.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/sdk/registrar.h>

#include "plugin/stamp.h"

namespace dsv3 {

/// A library that passed every check.
struct Library {
  std::filesystem::path path;  ///< canonical
  std::string sha256;
  Stamp stamp;
  std::vector<Registration> registrations;

  /// Null when it does not provide the component.
  const Registration* find(Kind kind, const std::string& name) const;
};

/// Loads `path`, or returns what an earlier call loaded. Throws dsv3::Error (ExitCode::plugin)
/// whose text names the plugin and the file; the same again for a file that failed before, without
/// touching it. The result lives as long as the process. Thread-safe.
const Library& load_library(const std::filesystem::path& path);

/// The library that registered the component. Thread-safe.
const Library& library_of(const Registration& registration);

/// In order of loading; thread-safe.
std::vector<const Library*> libraries();

/// "kind/name, kind/name", or "nothing".
std::string component_list(const std::vector<std::string>& components);

/// What the exception being handled says, without a backtrace. Call inside a catch block.
std::string current_exception_text();

/// Whether the exception being handled means that memory ran out. Call inside a catch block.
bool current_exception_is_out_of_memory();

}  // namespace dsv3
