#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <tuple>

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/prefix.h>
#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>

#include "call/call.h"
#include "plugin/library.h"
#include "plugin/owner.h"
#include "plugin/registry.h"

namespace dsv3 {
namespace {

using Path = std::filesystem::path;

[[noreturn]] void fail(const std::string& text) {
  throw Error(text, ExitCode::plugin);
}

std::vector<Path> toml_files(const Path& folder) {
  std::vector<Path> files;
  for (const auto& item : std::filesystem::directory_iterator(folder))
    if (item.path().extension() == ".toml") files.push_back(item.path());
  std::sort(files.begin(), files.end());
  return files;
}

// Returns the registry files at one plugin path.
std::vector<Path> registry_files(const Path& path) {
  if (!std::filesystem::exists(path))
    fail("plugin path " + path.string() + " does not exist; correct or remove it");
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<Path> files = toml_files(path);
  if (files.empty() && std::filesystem::is_directory(path / "registries"))
    files = toml_files(path / "registries");
  if (files.empty())
    fail("plugin path " + path.string() +
         " contains no registry (*.toml or registries/*.toml); pass the prefix in which the plugin "
         "is installed, or its build folder");
  return files;
}

// Returns the components of a library that is itself on the search path, from its stamp.
std::vector<PluginEntry> library_entries(const Path& library) {
  std::error_code failed;
  const Path path = std::filesystem::canonical(library, failed);
  if (failed) fail("plugin path " + library.string() + " does not exist; correct or remove it");
  std::vector<PluginEntry> entries;
  const Stamp stamp = stamp_of(path);
  for (const std::string& component : stamp.provides) {
    const size_t slash = std::min(component.find('/'), component.size());
    PluginEntry& entry = entries.emplace_back();
    entry.kind = kind_from_name(component.substr(0, slash));
    entry.name = component.substr(std::min(slash + 1, component.size()));
    entry.version = stamp.version;
    entry.library = entry.registry = path;
    entry.library_text = path.filename().string();
  }
  return entries;
}

// Whether experiments name components of this kind, and may name their library.
bool in_experiments(Kind kind) {
  return std::ranges::any_of(
      kinds(), [&](const KindRow& row) { return row.kind == kind && !row.path.empty(); });
}

// Returns the first match in search order. Two matches at one search level are an error, because
// choosing one would be arbitrary.
template <class Entry>
const Entry* lookup(const std::vector<Entry>& entries, Kind kind, const std::string& name) {
  const Entry* found = nullptr;
  for (const Entry& entry : entries) {
    if (entry.kind != kind || entry.name != name) continue;
    if (!found)
      found = &entry;
    else if (found->level == entry.level)
      fail(std::string(kind_name(kind)) + " '" + name +
           "' is in two registries at the same search level: " + found->registry.string() +
           " and " + entry.registry.string() + "; choose one with --plugin-path" +
           (in_experiments(kind) ? ", or set `library:`" : ""));
  }
  return found;
}

// Whether a registry belongs to this build or installation.
bool is_built_in(const Path& registry) {
  std::error_code ignored;
  return std::filesystem::equivalent(registry.parent_path(), own_prefix() / "registries", ignored);
}

template <class Entry>
const Entry* built_in(const std::vector<Entry>& entries, Kind kind, const std::string& name) {
  for (const Entry& entry : entries)
    if (entry.kind == kind && entry.name == name && is_built_in(entry.registry)) return &entry;
  return nullptr;
}

const Registration& in_library(const Library& library, Kind kind, const std::string& name,
                               const std::string& named_by) {
  if (const Registration* found = library.find(kind, name)) return *found;
  fail("plugin '" + library.stamp.name + "' (" + library.path.string() + ") has no " +
       kind_name(kind) + " '" + name + "'; it provides " + component_list(library.stamp.provides) +
       named_by);
}

const Registration& load_entry(const PluginEntry& entry) {
  if (!std::filesystem::exists(entry.library)) {
    std::vector<std::string> tried;
    for (const Path& path : library_candidates(entry.registry, entry.library_text))
      tried.push_back(path.string());
    fail("library " + entry.library_text + " of " + kind_name(entry.kind) + " '" + entry.name +
         "' not found; looked for " + comma_list(tried) + "; listed in " + entry.registry.string() +
         "; build it, or correct the registry");
  }
  return in_library(load_library(entry.library), entry.kind, entry.name,
                    "; listed in " + entry.registry.string());
}

}  // namespace

SearchLevels plugin_search_levels(const std::vector<std::string>& command_line,
                                  const std::vector<std::string>& machine_config) {
  SearchLevels levels{{command_line.begin(), command_line.end()},
                      {machine_config.begin(), machine_config.end()},
                      {}};
  if (const char* variable = std::getenv("DSV3_PLUGIN_PATH")) {
    std::string_view rest = variable;
    while (!rest.empty()) {
      const size_t end = std::min(rest.find(':'), rest.size());
      if (end > 0) levels.back().emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  constexpr std::array kLevels{"--plugin-path", "plugin_paths of config.yaml", "DSV3_PLUGIN_PATH"};
  for (size_t i = 0; i < levels.size(); ++i)
    for (const Path& path : levels[i])
      if (!std::filesystem::exists(path))
        fail(std::string(kLevels[i]) + " names " + path.string() +
             ", which does not exist; correct or remove it");
  const Path own = own_prefix() / "registries";
  if (std::filesystem::is_directory(own)) levels.push_back({own});
  return levels;
}

Plugins::Plugins(SearchLevels levels) : levels_(std::move(levels)) {
  for (size_t level = 0; level < levels_.size(); ++level) {
    std::set<Path> seen;  // listing a file twice at one level is not a conflict
    for (Path& path : levels_[level]) {
      path = std::filesystem::absolute(path).lexically_normal();
      if (path.extension() == ".so") {
        for (PluginEntry& entry : library_entries(path)) {
          entry.level = level;
          entries_.push_back(std::move(entry));
        }
        continue;
      }
      for (const Path& file : registry_files(path)) {
        const Path canonical = std::filesystem::weakly_canonical(file);
        if (!seen.insert(canonical).second) continue;
        require_safe_owner(canonical, "registry");
        Registry registry = read_registry(file);
        const auto append = [&](auto& from, auto& to) {
          for (auto& entry : from) to.emplace_back(std::move(entry)).level = level;
        };
        append(registry.plugins, entries_);
        append(registry.aliases, aliases_);
      }
    }
  }
}

const Registration& Plugins::find(const ComponentSpec& spec) {
  try {
    if (!spec.library.empty())
      return in_library(load_library(spec.library), spec.kind, spec.plugin, "");
    if (const Registration* found = find_if_known(spec.kind, spec.plugin)) return *found;
    fail_unknown(spec.kind, spec.plugin);
  } catch (const Error& e) {
    const std::string origin = spec.origin.text();
    throw Error(e.what() + (origin.empty() ? "" : "\n  requested by " + origin), e.code());
  }
}

void Plugins::fail_unknown(Kind kind, const std::string& name) const {
  const std::string label = kind_name(kind) + (" '" + name + "'");
  if (find_alias(kind, name))
    fail(label + " is a short form that must be used alone: write `" + kind_name(kind) + ": " +
         name + "`; no plugin has that name; looked in: " + searched());
  std::set<std::string> components;
  for (const PluginEntry& entry : entries_)
    if (entry.kind == kind) components.insert(entry.name);
  fail("unknown " + std::string(kind_name(kind)) + " plugin '" + name + "'; " +
       (components.empty() ? "known: none"
                           : suggestion(name, {components.begin(), components.end()}, "known")) +
       "; looked in: " + searched());
}

ConstructorError::ConstructorError(ComponentSpec component, const Error& error)
    : Error(std::string(kind_name(component.kind)) + " '" + component.plugin + "'" +
                (component.origin.text().empty() ? "" : " (" + component.origin.text() + ")") +
                ": " + error.what(),
            error.code()),
      spec(std::move(component)),
      cause(error.what()) {}
ConstructorError::~ConstructorError() = default;

std::shared_ptr<Pluggable> make_component(
    Plugins& plugins, const ComponentSpec& spec, const std::string& module, int64_t layer,
    const std::function<std::shared_ptr<Pluggable>(const Registration&)>& construct) {
  const Registration& registration = plugins.find(spec);
  const std::string name = kind_name(registration.kind);
  const std::string library = library_of(registration).path.string();
  // `dsv3 plugins check` resolves names only in its own build or installation, so pass other
  // libraries by path.
  const PluginEntry* entry =
      spec.library.empty() ? plugins.find_entry(spec.kind, spec.plugin) : nullptr;
  const bool found_by_name = entry && is_built_in(entry->registry);
  const Callee& callee = remember({.label = name + " '" + spec.plugin + "'",
                                   .check = found_by_name ? name + "/" + spec.plugin : library,
                                   .origin = spec.origin.text(),
                                   .library = library,
                                   .module = module,
                                   .layer = layer});
  const CallRecord call(callee, "constructor");
  try {
    std::shared_ptr<Pluggable> component = construct(registration);
    if (!component) throw Error("its factory returned nullptr", ExitCode::plugin);
    return guarded(callee, std::move(component));
  } catch (const Error& error) {
    throw ConstructorError(spec, error);
  } catch (...) {
    rethrow_named(call.callee, call.layer(), call.action);
  }
}

const Registration* Plugins::find_if_known(Kind kind, const std::string& name) {
  const PluginEntry* entry = find_entry(kind, name);
  return entry ? &load_entry(*entry) : nullptr;
}

// Adding a search path must not change what an experiment means. So a name of a built-in plugin
// always refers to that plugin, and only `library:` in the experiment can replace it.
const Alias* Plugins::find_alias(Kind kind, const std::string& name) const {
  const Alias* found = lookup(aliases_, kind, name);
  if (!found || is_built_in(found->registry)) return found;
  const Alias* original = built_in(aliases_, kind, name);
  if (original ? original->yaml != found->yaml : built_in(entries_, kind, name) != nullptr)
    fail("short form `" + std::string(kind_name(kind)) + ": " + name + "` in " +
         found->registry.string() + " has the name of a built-in plugin or short form; rename it");
  return found;
}

const PluginEntry* Plugins::find_entry(Kind kind, const std::string& name) const {
  const PluginEntry* found = lookup(entries_, kind, name);
  if (!found || is_built_in(found->registry)) return found;
  const PluginEntry* original = built_in(entries_, kind, name);
  std::error_code ignored;
  if (original && !std::filesystem::equivalent(found->library, original->library, ignored))
    fail(std::string(kind_name(kind)) + " '" + name + "' of " + found->library.string() +
         " has the name of a built-in plugin (" + original->library.string() + "); rename it" +
         (in_experiments(kind) ? ", or set `library: " + found->library.string() +
                                     "` in the experiment to use it instead"
                               : ""));
  return found;
}

std::vector<std::string> Plugins::names(Kind kind) const {
  std::set<std::string> names;
  for (const PluginEntry& entry : entries_)
    if (entry.kind == kind) names.insert(entry.name);
  for (const Alias& alias : aliases_)
    if (alias.kind == kind) names.insert(alias.name);
  return {names.begin(), names.end()};
}

std::string Plugins::searched() const {
  std::vector<std::string> paths;
  for (const auto& level : levels_)
    for (const Path& path : level)
      if (!std::ranges::count(paths, path.string())) paths.push_back(path.string());
  return paths.empty() ? "nothing (no plugin path is set)" : comma_list(paths);
}

std::vector<LoadedLibrary> loaded_libraries() {
  std::vector<LoadedLibrary> loaded;
  for (const Library* library : libraries())
    loaded.push_back({library->stamp.name, library->stamp.version, library->path, library->sha256});
  return loaded;
}

std::string Plugins::searched_library(const std::string& name, const std::string& library) const {
  for (const PluginEntry& entry : entries_)
    if (entry.name == name && entry.library.filename() == Path(library).filename() &&
        !is_built_in(entry.registry))
      return entry.library.string();
  return "";
}

const Schema* Plugins::schema(Kind kind, const std::string& name, const std::string& library) {
  if (!library.empty()) return in_library(load_library(library), kind, name, "").schema.get();
  const Registration* found = find_if_known(kind, name);
  return found ? found->schema.get() : nullptr;
}

std::string Plugins::alias(Kind kind, const std::string& name) const {
  const Alias* found = find_alias(kind, name);
  return found ? found->yaml : "";
}

}  // namespace dsv3
