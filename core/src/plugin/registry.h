// Registries: TOML files that map component names to libraries, so that none has to be opened.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/prefix.h>

namespace dsv3 {

struct Registry {
  std::vector<PluginEntry> plugins;
  std::vector<Alias> aliases;
};

/// Reads one registry file. Throws dsv3::Error (ExitCode::plugin), "file:line:col: error: ...".
Registry read_registry(const std::filesystem::path& file);

/// Paths of a library that a registry names, in search order: beside the registry, in
/// ../lib/dsv3/plugins from it (an installation), in the plugin folder of this build or
/// installation.
std::vector<std::filesystem::path> library_candidates(const std::filesystem::path& registry,
                                                      const std::string& library);

}  // namespace dsv3
