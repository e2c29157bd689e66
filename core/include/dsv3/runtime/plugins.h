// Finding and loading plugin libraries.
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

/// One [[plugin]] of a registry.
struct PluginEntry {
  Kind kind;
  std::string name, version, status, summary, docs;
  std::filesystem::path library;   ///< absolute; need not exist until the component is requested
  std::filesystem::path registry;  ///< file that names it
  std::string library_text;        ///< as written in the registry
  size_t level = 0;                ///< index of the search level
};

/// One [[alias]]: a short form of YAML, e.g. `optimizer: muon`.
struct Alias {
  Kind kind;
  std::string name;
  std::string yaml;
  std::filesystem::path registry;  ///< file that names it
  size_t level = 0;
};

/// A loaded library, for a run's provenance.
struct LoadedLibrary {
  std::string name, version;   ///< name and version in the stamp
  std::filesystem::path path;  ///< canonical
  std::string sha256;          ///< SHA-256 of the file at load time
};

/// Folders of registries in the order in which they are searched.
using SearchLevels = std::vector<std::vector<std::filesystem::path>>;

/// The usual levels: --plugin-path, config.yaml's paths, DSV3_PLUGIN_PATH (`:` between paths), and
/// the registries of this build or installation (found from libdsv3's location).
SearchLevels plugin_search_levels(const std::vector<std::string>& command_line,
                                  const std::vector<std::string>& machine_config);

/// Registries in search order, and the libraries that they name. Libraries are never unloaded, and
/// a process tries to load each only once.
class Plugins final : public Catalog {
 public:
  /// Each path is a registry file, a folder of registries (*.toml), or an installation prefix (a
  /// folder with registries/*.toml). The first level that has a name wins; two matches on one level
  /// are an error when that name is requested. Throws dsv3::Error (ExitCode::plugin) for a path
  /// that does not exist and, with file:line:col, for a registry that cannot be read.
  explicit Plugins(SearchLevels levels);

  /// Loads what `spec` names unless it is loaded; `spec.library` precedes every registry. Throws
  /// dsv3::Error (ExitCode::plugin), with a suggestion for an unknown name and with every differing
  /// stamp field for a library that cannot be loaded.
  const Registration& find(const ComponentSpec& spec);
  /// The same without a YAML position; null = no registry has the name.
  const Registration* find_if_known(Kind kind, const std::string& name);
  /// Null = no such short form.
  const Alias* find_alias(Kind kind, const std::string& name) const;
  /// The component's entry, without loading it; null = unknown.
  const PluginEntry* find_entry(Kind kind, const std::string& name) const;

  const std::vector<PluginEntry>& entries() const { return entries_; }
  const std::vector<Alias>& aliases() const { return aliases_; }

  const Schema* schema(Kind kind, const std::string& name, const std::string& library) override;
  std::string alias(Kind kind, const std::string& name) const override;
  /// Sorted, without duplicates.
  std::vector<std::string> names(Kind kind) const override;
  /// The paths searched, separated by ", ".
  std::string searched() const override;

 private:
  [[noreturn]] void fail_unknown(Kind kind, const std::string& name) const;

  SearchLevels levels_;
  std::vector<PluginEntry> entries_;
  std::vector<Alias> aliases_;
};

/// Every plugin library this process has loaded, in order of loading.
std::vector<LoadedLibrary> loaded_libraries();

/// The options as a table (key, type, default, allowed values, meaning): aligned text, or Markdown
/// for plugins' READMEs.
std::string options_table(const Schema& schema, bool markdown);

/// A dsv3::Error of the constructor of `spec`'s component, with component and place added.
class ConstructorError : public Error {
 public:
  ConstructorError(ComponentSpec component, const Error& cause);
  ~ConstructorError() override;
  ComponentSpec spec;
  std::string cause;  ///< what() of the constructor's error
};

/// Throws dsv3::Error that lists the known kinds.
Kind kind_from_name(const std::string& name);

/// What `make` does for every kind. `construct` calls the constructor; `module` and `layer` are the
/// component's place in the model, empty and -1 outside of layers.
std::shared_ptr<Pluggable> make_component(
    Plugins& plugins, const ComponentSpec& spec, const std::string& module, int64_t layer,
    const std::function<std::shared_ptr<Pluggable>(const Registration&)>& construct);

/// Constructs the component `spec`. Errors of its constructor and of every later `call` of it
/// become a dsv3::Error that names component, origin, step and library. Several threads may use a
/// tokenizer.
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
