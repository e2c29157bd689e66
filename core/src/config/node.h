// The tree of an experiment file. Every node has a source position and the number of the
// configuration layer that set it.
#pragma once

#include <compare>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dsv3/sdk/options.h>

namespace dsv3::config {

/// A position in a source registered with Diagnostics. Line and column are 1-based; the column is
/// in bytes.
struct Position {
  int source = -1;  ///< -1 = none (a default)
  int line = 0, column = 0;
  auto operator<=>(const Position&) const = default;
};

struct Entry;

struct Node {
  enum class Type { null = 1, scalar, list, map };

  Type type = Type::null;
  std::string text;      ///< a scalar's text, with quotes and escapes removed
  bool quoted = false;   ///< a quoted scalar is a string, never a number
  bool literal = false;  ///< `${` does not start a reference, because the text came from a program
                         ///< or the command line
  std::optional<OptionValue>
      value;  ///< a scalar's value if a program set it; `text` is then for display only
  Position at;
  bool from_alias = false;  ///< the expansion of a registry's alias
  int layer = 0;  ///< number of the configuration layer that set it; higher layers take precedence
  std::vector<Node> items;
  std::vector<Entry> entries;  ///< in file order, with unique keys

  bool is_null() const { return type == Type::null; }
  bool is_scalar() const { return type == Type::scalar; }
  bool is_list() const { return type == Type::list; }
  bool is_map() const { return type == Type::map; }

  const Entry* find(std::string_view key) const;
  Entry* find(std::string_view key);
  void erase(std::string_view key);
  /// Appends an entry to a map.
  Node& add(std::string key, Position key_at, Node value);
};

/// A key in a map, with its value.
struct Entry {
  std::string key;
  Position at;
  Node value;
  /// The plugin for which this option was written, if a higher configuration layer has changed the
  /// plugin.
  std::string inherited_from;
};

Node make_node(Node::Type type, Position at);
Node make_scalar(std::string text, Position at);
Node make_map(Position at);
/// Converts a typed value to a node: null for std::monostate, a list for a vector, otherwise a
/// scalar.
Node make_value(const OptionValue& value, Position at);

/// Looks up a dotted path such as "optimizer.0.lr" through maps and lists; nullptr = not found.
const Node* find_path(const Node& root, std::string_view path);
Node* find_path(Node& root, std::string_view path);

/// The number of nodes in the tree, including `node` but excluding keys.
size_t count_nodes(const Node& node);
/// The number of nesting levels; 1 for a scalar.
int depth_of(const Node& node);

/// Whether `text` is a list index, such as "0" or "12".
bool is_index(std::string_view text);
/// Whether all keys of a map are list indices. Such a map, e.g. {0: {...}}, changes single elements
/// of a list.
bool has_index_keys(const Node& map);

/// Joins "model" and "attention" into "model.attention". Returns the key if the path is empty.
std::string join(std::string_view path, std::string_view key);
/// Inverse of join: splits "model.attention" into "model" and "attention", and "data" into "" and
/// "data".
std::pair<std::string, std::string> split_last(std::string_view path);

}  // namespace dsv3::config
