// Checks sections, components and lists of components in the merged tree against schemas and
// records the resolved values.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <dsv3/runtime/config.h>

#include "config/diagnostics.h"
#include "config/node.h"
#include "config/schemas.h"
#include "config/values.h"

namespace dsv3::config {

/// The map being checked. Its fields are used in error messages and to look up convention
/// overrides.
struct Scope {
  std::string path;                 ///< "model.attention"; empty = the top level
  std::vector<std::string> others;  ///< additional allowed keys that are read elsewhere
  std::string conventions;  ///< prefix of the map's keys in `conventions:`, e.g. "attention.mla"
  std::optional<Kind> kind = {};  ///< of a component
  std::string plugin = {};
  std::string part = {};  ///< distinguishes components with the same plugin: "layers 2-11"

  /// "model.attention (plugin 'mla')".
  std::string text() const;
};

class Checker {
 public:
  /// Adds resolved values, conventions and notes to `experiment`.
  Checker(const Node& root, Diagnostics& diagnostics, Catalog& catalog, Experiment& experiment);

  /// The node at `path`; nullptr = not set.
  const Node* node_at(const std::string& path) const { return find_path(root_, path); }

  /// The map at `path`; nullptr if it is absent or empty. Reports an error if it is not a map.
  const Node* section(const std::string& path);

  /// Reads the section at `scope.path` into an options struct.
  template <class T>
  T options(const Scope& scope) {
    const Schema schema = schema_of<T>();
    return options_from<T>(schema, values(section(scope.path), schema, scope));
  }
  template <class T>
  T options(const std::string& path, std::vector<std::string> others = {}) {
    return options<T>(Scope{path, std::move(others), path});
  }

  /// Checks and returns the values in `map` (nullptr = nothing is set), without defaults.
  OptionValues values(const Node* map, const Schema& schema, const Scope& scope);

  /// Reads a component and its options.
  ComponentSpec component(const Node& map, Kind kind, const std::string& path,
                          const std::string& part);
  /// Reads the single component configured at `path`. Reports an error if it is missing, unless it
  /// is optional: then the result's plugin is empty.
  ComponentSpec component_at(const std::string& path, Kind kind);

  /// Returns the maps of the components at `path`, where a single component or a list may be
  /// configured. Reports an error if there are none, unless they are optional.
  std::vector<const Node*> components_at(const std::string& path, Kind kind);
  /// Whether components_at() has been called for `kind`.
  bool has_read(Kind kind) const { return read_.contains(kind); }

  /// Resolves a scalar to a string. `what` describes it in error messages. Returns nullopt after
  /// reporting an error.
  std::optional<std::string> word(const Node& node, const std::string& what);
  /// The string in a scalar for error messages: as written if it contains the value of an
  /// environment variable.
  std::string shown_word(const Node& node);

  /// Records a resolved value and the source position of the node that set it. An empty `node`
  /// means that the value is a default.
  void record(const std::string& path, OptionValue value, const Node& node,
              std::string written = "");

  /// Whether an unknown key was reported whose likely meaning is the key at `path`. That key is
  /// then not reported as missing.
  bool is_misspelled(const std::string& path) const { return misspelled_.contains(path); }

  /// Reads the section `tags`, whose maps may be nested. Values of environment variables are left
  /// as written, because tags leave this machine.
  std::map<std::string, std::string> tags();

  /// Reports entries in `conventions:` that belong to no known plugin or section.
  void check_conventions();

  /// Source position of the section `map`; nullptr = the start of the file.
  Position position_of(const Node* map) const;
  Diagnostics& diagnostics() { return diagnostics_; }

 private:
  const Schema* schema(Kind kind, const std::string& name, const std::string& library, Position at);
  std::string known_plugins(Kind kind);
  void unknown_plugin(const Node& name, Kind kind, const std::string& text);
  void unknown_key(const Entry& entry, const Schema& schema, const Scope& scope);
  bool is_dropped_option(const Entry& entry, const Schema& schema, const Scope& scope);
  std::vector<std::string> siblings_with(const std::string& key, const Scope& scope);
  void note_dropped(const std::vector<const Entry*>& dropped, const Scope& scope);
  void run_checks(const Node* map, const Schema& schema, const Scope& scope,
                  const OptionValues& values);
  const Node* given_convention(const OptionSpec& spec, const Scope& scope);
  void add_convention(const OptionSpec& spec, const OptionValue& value, const Scope& scope);
  std::string library_of(const Node& map, const std::string& path);

  const Node& root_;
  Diagnostics& diagnostics_;
  Catalog& catalog_;
  Experiment& experiment_;
  Resolver resolver_;
  std::map<std::string, const Entry*> given_conventions_;  // the entries in `conventions:`
  std::set<std::string> known_conventions_;  // keys of all conventions that have been read so far
  std::set<Kind> read_;                      // component kinds that have been read
  std::set<std::string> misspelled_;         // keys suggested in place of unknown ones
  std::set<std::string> checked_;  // key prefixes of all sections and components checked so far
};

/// The valid values for an optimizer group's `role`.
const std::vector<std::string>& role_words();

/// Reads the components at `path` and their layers. Checks that each layer in 0..layers-1 has
/// exactly one component, unless `layers` is 0 (unknown).
std::vector<LayerRange> layer_ranges(Checker& checker, const std::string& path, Kind kind,
                                     int64_t layers);

/// Reads the optimizer groups and gives them unique names.
std::vector<OptimizerGroup> optimizer_groups(Checker& checker);

/// Reads the components of a kind that has no extra keys such as `layers` or `role`. Returns none
/// if they are optional and not configured.
std::vector<ComponentSpec> components(Checker& checker, const Slot& slot);

}  // namespace dsv3::config
