// Loads plugin libraries into this process. Each is loaded once, checked before any of its code
// runs, and never unloaded.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/sdk/registrar.h>

#include "plugin/stamp.h"

namespace dsv3 {

/// A plugin library that has passed all checks.
struct Library {
  std::filesystem::path path;   ///< canonical
  std::filesystem::path image;  ///< path of the copy in memory that was loaded
  std::string sha256;
  Stamp stamp;
  std::vector<Registration> registrations;

  /// Returns null if the library does not provide the component.
  const Registration* find(Kind kind, const std::string& name) const;
};

/// Reads the stamp of the library at `path` without loading it. Throws a dsv3::Error
/// (ExitCode::plugin) that names the file.
Stamp stamp_of(const std::filesystem::path& path);

/// Loads the library at `path`, or returns it if it is already loaded. Throws a dsv3::Error
/// (ExitCode::plugin) that names the plugin and the file. If the file failed to load before, throws
/// the same error again without opening it. The result exists until the process ends. Thread-safe.
const Library& load_library(const std::filesystem::path& path);

/// Returns the library that registered the component. Thread-safe.
const Library& library_of(const Registration& registration);

/// Returns all libraries in the order in which they were loaded. Thread-safe.
std::vector<const Library*> libraries();

/// Formats "kind/name, kind/name", or "nothing".
std::string component_list(const std::vector<std::string>& components);

}  // namespace dsv3
