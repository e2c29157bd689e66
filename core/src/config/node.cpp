#include "config/node.h"

#include <algorithm>
#include <utility>

#include "config/values.h"

namespace dsv3::config {

const Entry* Node::find(std::string_view key) const {
  const auto found = std::ranges::find(entries, key, &Entry::key);
  return found == entries.end() ? nullptr : &*found;
}

Entry* Node::find(std::string_view key) {
  return const_cast<Entry*>(std::as_const(*this).find(key));
}

void Node::erase(std::string_view key) {
  std::erase_if(entries, [&](const Entry& entry) { return entry.key == key; });
}

Node& Node::add(std::string key, Position key_at, Node value) {
  entries.push_back({std::move(key), key_at, std::move(value), ""});
  return entries.back().value;
}

Node make_node(Node::Type type, Position at) {
  Node node;
  node.type = type;
  node.at = at;
  return node;
}

Node make_scalar(std::string text, Position at) {
  Node node = make_node(Node::Type::scalar, at);
  node.text = std::move(text);
  return node;
}

Node make_map(Position at) {
  return make_node(Node::Type::map, at);
}

Node make_value(const OptionValue& value, Position at) {
  if (std::holds_alternative<std::monostate>(value)) return make_node(Node::Type::null, at);
  const auto list_of = [&](const auto& elements) {
    Node list = make_node(Node::Type::list, at);
    for (const auto& element : elements) list.items.push_back(make_value(element, at));
    return list;
  };
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) return list_of(*list);
  if (const auto* list = std::get_if<std::vector<double>>(&value)) return list_of(*list);
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) return list_of(*list);
  Node node = make_scalar(value_text(value), at);
  node.value = value;
  node.quoted = std::holds_alternative<std::string>(value);
  node.literal = true;
  return node;
}

const Node* find_path(const Node& root, std::string_view path) {
  if (path.empty()) return &root;
  const size_t dot = path.find('.');
  const std::string_view key = path.substr(0, dot);
  const Node* node = nullptr;
  if (root.is_list() && is_index(key)) {
    const size_t index = std::stoul(std::string(key));
    if (index < root.items.size()) node = &root.items[index];
  } else if (const Entry* entry = root.find(key)) {
    node = &entry->value;
  }
  return node && dot != path.npos ? find_path(*node, path.substr(dot + 1)) : node;
}

Node* find_path(Node& root, std::string_view path) {
  return const_cast<Node*>(find_path(std::as_const(root), path));
}

size_t count_nodes(const Node& node) {
  size_t count = 1;
  for (const Node& item : node.items) count += count_nodes(item);
  for (const Entry& entry : node.entries) count += count_nodes(entry.value);
  return count;
}

int depth_of(const Node& node) {
  int below = 0;
  for (const Node& item : node.items) below = std::max(below, depth_of(item));
  for (const Entry& entry : node.entries) below = std::max(below, depth_of(entry.value));
  return below + 1;
}

bool is_index(std::string_view text) {
  return !text.empty() && text.size() <= 6 && text.find_first_not_of("0123456789") == text.npos;
}

bool has_index_keys(const Node& map) {
  return map.is_map() && !map.entries.empty() &&
         std::all_of(map.entries.begin(), map.entries.end(),
                     [](const Entry& entry) { return is_index(entry.key); });
}

std::string join(std::string_view path, std::string_view key) {
  std::string joined(path);
  if (!joined.empty()) joined += '.';
  return joined.append(key);
}

std::pair<std::string, std::string> split_last(std::string_view path) {
  const size_t dot = path.rfind('.');
  return {std::string(path.substr(0, dot == path.npos ? 0 : dot)),
          std::string(path.substr(dot + 1))};  // 0 if not found (npos + 1)
}

}  // namespace dsv3::config
