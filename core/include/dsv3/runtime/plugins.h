// Finds and loads plugin libraries.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/pluggable.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3 {

/// One [[plugin]] entry in a registry.
struct PluginEntry {
  Kind kind;
  std::string name, version, status, summary, docs;
  std::filesystem::path library;   ///< absolute path, which need not exist until the component is
                                   ///< requested
  std::filesystem::path registry;  ///< registry file that contains this entry
  std::string library_text;        ///< library path as written in the registry
  size_t level = 0;                ///< index in SearchLevels
};

/// One [[alias]] entry: a short form for YAML, e.g. `optimizer: muon`.
struct Alias {
  Kind kind;
  std::string name;
  std::string yaml;
  std::filesystem::path registry;  ///< registry file that contains this entry
  size_t level = 0;
};

/// A loaded library, as recorded in provenance.
struct LoadedLibrary {
  std::string name, version;   ///< name and version from the stamp
  std::filesystem::path path;  ///< canonical
  std::string sha256;          ///< SHA-256 of the file at load time
};

/// Registry paths, grouped into levels. Earlier levels take precedence.
using SearchLevels = std::vector<std::vector<std::filesystem::path>>;

/// Returns the default levels: --plugin-path, the paths in trusted config files, DSV3_PLUGIN_PATH
/// (paths separated by `:`), and the registries of this build or installation (found relative to
/// libdsv3).
SearchLevels plugin_search_levels(const std::vector<std::string>& command_line,
                                  const std::vector<std::string>& machine_config);

/// The registries in all search levels, and the libraries loaded from them. Libraries are never
/// unloaded, and a process tries to load each library only once.
class Plugins final : public Catalog {
 public:
  /// Each path is a plugin library (*.so), a registry file, a folder of registries (*.toml), or an
  /// installation prefix (a folder with registries/*.toml). The first level that contains a name
  /// wins. Two matches on one level are an error when that name is requested, and so is an entry
  /// that replaces a plugin or alias of this build or installation. Throws dsv3::Error
  /// (ExitCode::plugin) if a path does not exist or a registry is invalid. The error for an invalid
  /// registry contains file:line:col.
  explicit Plugins(SearchLevels levels);

  /// Finds the component for `spec` and loads its library if necessary. `spec.library` takes
  /// precedence over all registries. Throws dsv3::Error (ExitCode::plugin): with a suggestion for
  /// an unknown name, and with every differing stamp field for a library that cannot be loaded.
  const Registration& find(const ComponentSpec& spec);
  /// Like find(), but returns null if no registry contains the name. Errors contain no YAML
  /// location.
  const Registration* find_if_known(Kind kind, const std::string& name);
  /// Returns null if the alias does not exist.
  const Alias* find_alias(Kind kind, const std::string& name) const;
  /// Returns the component's registry entry, or null if it is unknown. Loads nothing.
  const PluginEntry* find_entry(Kind kind, const std::string& name) const;

  const std::vector<PluginEntry>& entries() const { return entries_; }
  const std::vector<Alias>& aliases() const { return aliases_; }

  const Schema* schema(Kind kind, const std::string& name, const std::string& library) override;
  std::string alias(Kind kind, const std::string& name) const override;
  /// Sorted, without duplicates.
  std::vector<std::string> names(Kind kind) const override;
  /// Returns the searched paths, separated by ", ".
  std::string searched() const override;
  std::string searched_library(const std::string& name, const std::string& library) const override;

 private:
  [[noreturn]] void fail_unknown(Kind kind, const std::string& name) const;

  SearchLevels levels_;
  std::vector<PluginEntry> entries_;
  std::vector<Alias> aliases_;
};

/// Returns all plugin libraries that this process has loaded, in load order.
std::vector<LoadedLibrary> loaded_libraries();

/// Formats the options as a table (key, type, default, allowed values, description), followed by a
/// table of the metrics, if there are any: aligned text, or Markdown for plugins' READMEs.
std::string options_table(const Schema& schema, bool markdown);

/// An error thrown by a component's constructor. Its message also contains the component and the
/// location of its name in the experiment.
class ConstructorError : public Error {
 public:
  ConstructorError(ComponentSpec component, const Error& cause);
  ~ConstructorError() override;
  ComponentSpec spec;
  std::string cause;  ///< original message of the constructor's error
};

/// Returns the kind called `name`. If there is none, throws a dsv3::Error that lists the known
/// kinds.
Kind kind_from_name(const std::string& name);

/// Implements make() for every kind. `construct` calls the constructor. `module` and `layer` locate
/// the component in the model. For components that are not layers, they are "" and -1.
std::shared_ptr<Pluggable> make_component(
    Plugins& plugins, const ComponentSpec& spec, const std::string& module, int64_t layer,
    const std::function<std::shared_ptr<Pluggable>(const Registration&)>& construct);

/// Constructs the component that `spec` describes. Errors that its constructor or any later call
/// throws become a dsv3::Error that names the component, origin, step and library. If the component
/// is a tokenizer, several threads may use it at once.
template <class Interface>
std::shared_ptr<Interface> make(Plugins& plugins, const ComponentSpec& spec,
                                const ContextOf<Interface>& context = {}) {
  std::string module;
  int64_t layer = -1;
  if constexpr (std::is_same_v<ContextOf<Interface>, LayerContext>) {
    module = context.prefix;
    layer = context.layer;
  }
  return std::static_pointer_cast<Interface>(
      make_component(plugins, spec, module, layer, [&](const Registration& registration) {
        return construct<Interface>(registration, spec.options, context);
      }));
}

}  // namespace dsv3
