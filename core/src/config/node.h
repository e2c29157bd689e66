// The tree that experiment files become: every value knows where it was written and by which layer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dsv3::config {

/// A place in one of Diagnostics' sources. Line and column are 1-based; the column counts bytes.
struct Position {
  int source = -1;  ///< -1 = nowhere: a default
  int line = 0, column = 0;
};

struct Entry;

struct Node {
  enum class Type { null = 1, scalar, list, map };

  Type type = Type::null;
  std::string text;     ///< of a scalar, quotes and escapes undone
  bool quoted = false;  ///< a quoted scalar is a string, never a number
  Position at;
  int layer = 0;  ///< who set it: a later layer has a higher number
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
  std::string
      inherited_from;  ///< plugin this option was written for, once a later layer swapped it
};

Node make_scalar(std::string text, Position at, int layer = 0);
Node make_map(Position at, int layer = 0);

/// Follows a dotted path such as "optimizer.0.lr" through maps and lists; nullptr = not there.
const Node* find_path(const Node& root, std::string_view path);
Node* find_path(Node& root, std::string_view path);

/// Nodes below and including this one, keys not counted.
size_t count_nodes(const Node& node);
/// Levels of nesting; a scalar has 1.
int depth_of(const Node& node);

/// True for "0", "12", ...: how a path indexes a list.
bool is_index(std::string_view text);

/// "model" + "attention" -> "model.attention"; an empty path yields the key.
std::string join(std::string_view path, std::string_view key);

/// "a, b, c".
std::string comma_list(const std::vector<std::string>& words);

}  // namespace dsv3::config
