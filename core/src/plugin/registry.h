// Registries: TOML files that map component names to libraries, so that dsv3 need not open the
// libraries to find a component.
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

/// Reads one registry file. Throws dsv3::Error (ExitCode::plugin) with a message like
/// "file:line:col: error: ...".
Registry read_registry(const std::filesystem::path& file);

/// Returns the possible paths of a library listed in a registry, in search order: next to the
/// registry, in ../lib/dsv3/plugins relative to the registry (an installation), and in this dsv3's
/// plugin folder.
std::vector<std::filesystem::path> library_candidates(const std::filesystem::path& registry,
                                                      const std::string& library);

}  // namespace dsv3
