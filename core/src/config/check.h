// Checks sections and components of the merged tree against schemas and writes the resolved tree.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/config.h>

#include "config/diagnostics.h"
#include "config/interpolate.h"
#include "config/node.h"
#include "config/values.h"

namespace dsv3::config {

/// What is being checked, for error texts and for the names of conventions.
struct Scope {
  std::string path;                 ///< "model.attention"; empty = the top
  std::vector<std::string> others;  ///< keys that are read elsewhere
  std::string conventions;          ///< prefix of convention names
  std::optional<Kind> kind = {};    ///< of a component
  std::string plugin = {};
  std::string part = {};  ///< tells equal components apart: "layers 2-11"

  /// "model.attention (plugin 'mla')".
  std::string text() const;
};

/// A scalar that the core reads itself, and how it is stored.
struct Word {
  std::string text;
  Node stored;
};

class Checker {
 public:
  Checker(const Node& root, Diagnostics& diagnostics, Catalog& catalog,
          std::vector<std::string>& notes)
      : root_(root),
        diagnostics_(diagnostics),
        catalog_(catalog),
        notes_(notes),
        resolver_(root, diagnostics) {}

  /// What the experiment says at `path`; nullptr = nothing.
  const Node* written(const std::string& path) const { return find_path(root_, path); }

  /// Unset conventions get this implementation's values from now on.
  void use_conventions(const std::string& implementation);

  /// The map at `path`; nullptr when absent or empty, an error when it is something else.
  const Node* section(const std::string& path);

  /// Values of the section `scope.path` as a T; the resolved ones, defaults included, go to `out`.
  template <class T>
  T options(const Scope& scope, Node& out) {
    const Schema schema = schema_of<T>();
    return options_from<T>(schema, values(section(scope.path), schema, scope, out));
  }

  /// Checked values of `map` (nullptr = nothing set).
  OptionValues values(const Node* map, const Schema& schema, const Scope& scope, Node& out);

  /// A component and its options; plugin and options go to `out`, which may hold the core's keys
  /// already.
  ComponentSpec component(const Node& map, Kind kind, const std::string& path,
                          const std::string& part, Node& out);
  /// The single component at `path`. Its absence is an error unless `optional`; then plugin is
  /// empty.
  ComponentSpec component_at(const std::string& path, Kind kind, bool optional, Node& out);

  /// The maps of a slot that may be a list; an error when there is none and it is not optional.
  std::vector<const Node*> components_at(const std::string& path, Kind kind, bool optional);

  /// A scalar with references filled in; `what` names it. nullopt = a mistake was reported.
  std::optional<Word> word(const Node& node, const std::string& what);

  /// "known attention plugins: mha, mla".
  std::string known_plugins(Kind kind);

  /// Of a section; the file's start for nullptr.
  Position position_of(const Node* map) const;
  const std::map<std::string, std::string>& conventions() const { return conventions_; }
  Diagnostics& diagnostics() { return diagnostics_; }

 private:
  const Schema* schema(Kind kind, const std::string& name, const std::string& library, Position at);
  void unknown_plugin(const Node& name, Kind kind, const std::string& text);
  void unknown_key(const Entry& entry, const Schema& schema, const Scope& scope);
  bool dropped_with_swap(const Entry& entry, const Scope& scope);
  std::vector<std::string> siblings_with(const std::string& key, const Scope& scope);
  void note_dropped(const std::vector<const Entry*>& dropped, const Scope& scope);
  void run_checks(const Node* map, const Schema& schema, const Scope& scope,
                  const OptionValues& values);
  void add_default(const OptionSpec& spec, const Scope& scope, OptionValues& values, Node& out);
  void add_convention(const OptionSpec& spec, const OptionValue& value, const Scope& scope);
  std::string library_of(const Node& map, const std::string& path, Node& out);

  const Node& root_;
  Diagnostics& diagnostics_;
  Catalog& catalog_;
  std::vector<std::string>& notes_;
  Resolver resolver_;
  std::map<std::string, std::string> conventions_;
  std::string implementation_;
  Position implementation_at_;
};

}  // namespace dsv3::config
