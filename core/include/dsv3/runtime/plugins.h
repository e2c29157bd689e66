// Finding and loading plugin libraries.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3 {

/// One [[plugin]] of a registry.
struct PluginEntry {
  Kind kind;
  std::string name, version, status, summary, docs;
  std::filesystem::path library;   ///< absolute
  std::filesystem::path registry;  ///< file that names it
};

/// One [[alias]]: a short form that stands for YAML, e.g. `optimizer: muon`.
struct Alias {
  Kind kind;
  std::string name;
  std::string yaml;
};

/// Registries in order of search, and the libraries loaded so far. Libraries are never unloaded.
class Plugins {
 public:
  /// `paths`: --plugin-path first, then config.yaml's, DSV3_PLUGIN_PATH, the install prefix; each is a
  /// folder of registries (*.toml) or one registry file, and a level of its own: the first level that
  /// knows a name wins, two hits on one level are an error.
  explicit Plugins(std::vector<std::vector<std::filesystem::path>> levels);

  /// Loads what `spec` names if it is not loaded yet. Throws dsv3::Error (ExitCode::plugin) with
  /// did-you-mean for unknown names and every differing stamp field for unloadable ones.
  const Registration& find(const ComponentSpec& spec);
  const Registration* find_if_known(Kind kind, const std::string& name);
  const Alias* find_alias(Kind kind, const std::string& name) const;
  const std::vector<PluginEntry>& entries() const { return entries_; }
  const std::vector<Alias>& aliases() const { return aliases_; }

 private:
  struct Loaded;
  std::vector<PluginEntry> entries_;
  std::vector<Alias> aliases_;
  std::shared_ptr<Loaded> loaded_;
};

/// Makes the component `spec` of kind `Base`; errors gain the component and its YAML position.
template <class Base, class... Context>
std::shared_ptr<Base> make(Plugins& plugins, const ComponentSpec& spec, const Context&... context);

}  // namespace dsv3
