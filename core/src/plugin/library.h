// The plugin libraries of this process. Each is loaded once, checked before any of its code runs,
// and never unloaded.
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

  /// Null if the library does not provide the component.
  const Registration* find(Kind kind, const std::string& name) const;
};

/// Loads `path`, or returns what an earlier call loaded. Throws dsv3::Error (ExitCode::plugin) with
/// the plugin and the file. For a file that failed before, throws the same error without opening
/// it. The result exists until the process ends. Thread-safe.
const Library& load_library(const std::filesystem::path& path);

/// The library that registered the component. Thread-safe.
const Library& library_of(const Registration& registration);

/// All libraries in order of loading. Thread-safe.
std::vector<const Library*> libraries();

/// Formats "kind/name, kind/name", or "nothing".
std::string component_list(const std::vector<std::string>& components);

}  // namespace dsv3
