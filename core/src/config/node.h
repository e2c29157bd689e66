// The tree that experiment files become: every value knows its position and the layer that set it.
#pragma once

#include <compare>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dsv3/sdk/options.h>

namespace dsv3::config {

/// A position in one of Diagnostics' sources. Line and column are 1-based; the column counts bytes.
struct Position {
  int source = -1;  ///< -1 = none: a default
  int line = 0, column = 0;
  auto operator<=>(const Position&) const = default;
};

struct Entry;

struct Node {
  enum class Type { null = 1, scalar, list, map };

  Type type = Type::null;
  std::string text;      ///< of a scalar, quotes and escapes undone
  bool quoted = false;   ///< a quoted scalar is a string, never a number
  bool literal = false;  ///< `${` means itself: the text came from a program or the command line
  std::optional<OptionValue> value;  ///< of a scalar that a program set; `text` only shows it
  Position at;
  int layer = 0;  ///< the layer that set it; a later layer has a higher number
  std::vector<Node> items;
  std::vector<Entry> entries;  ///< in written order, keys unique

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

/// One key of a map.
struct Entry {
  std::string key;
  Position at;
  Node value;
  std::string inherited_from;  ///< plugin this option was written for, if a later layer changed it
};

Node make_node(Node::Type type, Position at);
Node make_scalar(std::string text, Position at);
Node make_map(Position at);
/// A typed value: null for std::monostate, a list of scalars for a vector, else a scalar.
Node make_value(const OptionValue& value, Position at);

/// Follows a dotted path such as "optimizer.0.lr" through maps and lists; nullptr = not found.
const Node* find_path(const Node& root, std::string_view path);
Node* find_path(Node& root, std::string_view path);

/// Nodes below and including this one, keys not counted.
size_t count_nodes(const Node& node);
/// Levels of nesting; a scalar has 1.
int depth_of(const Node& node);

/// True for "0", "12", ...: how a path indexes a list.
bool is_index(std::string_view text);
/// Whether a map's keys are all indices, as in {0: {...}}, which changes elements of a list.
bool has_index_keys(const Node& map);

/// "model" + "attention" -> "model.attention"; an empty path yields the key.
std::string join(std::string_view path, std::string_view key);
/// The reverse: "model.attention" -> "model", "attention"; "data" -> "", "data".
std::pair<std::string, std::string> split_last(std::string_view path);

}  // namespace dsv3::config
