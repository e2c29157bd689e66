// Finding and loading plugin libraries.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3 {

/// One [[plugin]] of a registry.
struct PluginEntry {
  Kind kind;
  std::string name, version, status, summary, docs;
  std::filesystem::path library;   ///< absolute; need not exist until the component is asked for
  std::filesystem::path registry;  ///< file that names it
  std::string library_text;        ///< as the registry spells it
  size_t level = 0;                ///< index of the search level
};

/// One [[alias]]: a short form that stands for YAML, e.g. `optimizer: muon`.
struct Alias {
  Kind kind;
  std::string name;
  std::string yaml;
  std::filesystem::path registry;  ///< file that names it
  size_t level = 0;
};

/// A library that was loaded, for a run's provenance.
struct LoadedLibrary {
  std::string name, version;   ///< of the stamp
  std::filesystem::path path;  ///< canonical
  std::string sha256;          ///< of the file as it was when it was loaded
};

/// Folders of registries in the order in which they are searched.
using SearchLevels = std::vector<std::vector<std::filesystem::path>>;

/// The usual levels: --plugin-path, config.yaml's paths, DSV3_PLUGIN_PATH (`:` between paths), and
/// the registries beside this build or installation (found from libdsv3's own place).
SearchLevels plugin_search_levels(const std::vector<std::string>& command_line,
                                  const std::vector<std::string>& machine_config);

/// Registries in order of search, and the libraries behind them. Libraries are never unloaded, and
/// one that could not be loaded is not tried again by this process.
class Plugins {
 public:
  /// Each path is a registry file, a folder of registries (*.toml), or an installation prefix (a
  /// folder with registries/*.toml). The first level that knows a name wins; two hits on one level
  /// are an error, raised when that name is asked for. Throws dsv3::Error (ExitCode::plugin) for a
  /// path that is not there and, as file:line:col, for a registry that cannot be read.
  explicit Plugins(SearchLevels levels);

  /// Loads what `spec` names if it is not loaded yet; `spec.library` goes before every registry.
  /// Throws dsv3::Error (ExitCode::plugin) with did-you-mean for unknown names and every differing
  /// stamp field for unloadable ones.
  const Registration& find(const ComponentSpec& spec);
  /// The same without a YAML position; null = no registry knows the name.
  const Registration* find_if_known(Kind kind, const std::string& name);
  /// Null = no such short form.
  const Alias* find_alias(Kind kind, const std::string& name) const;
  /// What the registries say of a component, without loading it; null = unknown.
  const PluginEntry* find_entry(Kind kind, const std::string& name) const;

  const std::vector<PluginEntry>& entries() const { return entries_; }
  const std::vector<Alias>& aliases() const { return aliases_; }
  /// Component names and short forms of the kind, sorted, each once.
  std::vector<std::string> names(Kind kind) const;
  /// The paths searched, separated by ", ".
  std::string searched() const;

 private:
  [[noreturn]] void refuse_unknown(Kind kind, const std::string& name) const;

  SearchLevels levels_;
  std::vector<PluginEntry> entries_;
  std::vector<Alias> aliases_;
};

/// Every plugin library this process has loaded, in order of loading.
std::vector<LoadedLibrary> loaded_libraries();

/// What the experiment checker asks, answered from `plugins`, which must outlive this.
class PluginCatalog final : public Catalog {
 public:
  explicit PluginCatalog(Plugins& plugins) : plugins_(plugins) {}
  const Schema* schema(Kind kind, const std::string& name, const std::string& library) override;
  std::string alias(Kind kind, const std::string& name) override;
  std::vector<std::string> names(Kind kind) override;
  std::string searched() const override;

 private:
  Plugins& plugins_;
};

/// The options as a table (key, type, default, allowed values, meaning): aligned text, or Markdown
/// as plugins' READMEs show it.
std::string options_table(const Schema& schema, bool markdown);

/// Makes the component `spec` of kind `Base` with the context of its kind, behind a guard: whatever
/// it throws, from its constructor to its last call, becomes a dsv3::Error that names component,
/// YAML position, step and library, and so does a result that the kind does not allow. A
/// dsv3::Error keeps its exit code, anything else becomes ExitCode::plugin. Tokenizers may be used
/// by several threads.
template <class Base, class... Context>
std::shared_ptr<Base> make(Plugins& plugins, const ComponentSpec& spec, const Context&... context);

}  // namespace dsv3
