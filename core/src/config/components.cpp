#include "config/components.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <regex>

#include <dsv3/runtime/suggest.h>

namespace dsv3::config {
namespace {

constexpr size_t kMaxPattern = 1000;  // std::regex recurses

Node empty_list(Position at) {
  Node list;
  list.type = Node::Type::list;
  list.at = at;
  return list;
}

// "2", "2-11" or "2-" (to the last layer, given as `open_end`).
bool parse_range(const std::string& text, int64_t open_end, int64_t& first, int64_t& last) {
  const char* const end = text.data() + text.size();
  auto [at, error] = std::from_chars(text.data(), end, first);
  if (error != std::errc() || first < 0) return false;
  last = first;
  if (at == end) return true;
  if (*at++ != '-') return false;
  if (at == end) {
    last = std::max(open_end, first);
    return true;
  }
  const auto [stop, wrong] = std::from_chars(at, end, last);
  return wrong == std::errc() && stop == end && last >= first;
}

struct Placed {
  int64_t first, last;
  const Node* node;  // for the position of an error
};

std::string range_text(int64_t first, int64_t last) {
  return first == last ? std::to_string(first) : std::to_string(first) + "-" + std::to_string(last);
}

// "layer 3" or "layers 2-11".
std::string named_layers(int64_t first, int64_t last) {
  return (first == last ? "layer " : "layers ") + range_text(first, last);
}

void check_tiling(std::vector<Placed> placed, int64_t layers, const std::string& path,
                  Diagnostics& diagnostics) {
  std::stable_sort(placed.begin(), placed.end(),
                   [](const Placed& a, const Placed& b) { return a.first < b.first; });
  const std::string all = "model.layers is " + std::to_string(layers) + ": layers 0-" +
                          std::to_string(layers - 1) + " each need one component";
  int64_t next = 0;
  for (const Placed& range : placed) {
    if (range.last >= layers)
      diagnostics.error(
          *range.node,
          path + " names layer " + std::to_string(range.last) + ", which the model does not have",
          {all});
    if (range.first > next && next < layers)
      diagnostics.error(
          *range.node,
          path + " leaves out " + named_layers(next, std::min(range.first, layers) - 1), {all});
    if (range.first < next)
      diagnostics.error(
          *range.node,
          path + " names " + named_layers(range.first, std::min(next - 1, range.last)) + " twice",
          {all});
    next = std::max(next, range.last + 1);
  }
  if (next < layers && !placed.empty())
    diagnostics.error(*placed.back().node, path + " leaves out " + named_layers(next, layers - 1),
                      {all});
}

// The words of `role:`, one or a list.
std::vector<std::string> read_roles(Checker& checker, const Node& node, const std::string& path,
                                    Node& out) {
  std::vector<std::string> roles;
  Node stored = empty_list(node.at);
  const std::vector<std::string>& known = role_words();
  const auto read = [&](const Node& word) {
    const auto read_word = checker.word(word, "'role' in " + path);
    if (!read_word) return;
    const std::string* role = &read_word->text;
    if (std::find(known.begin(), known.end(), *role) == known.end()) {
      const std::string near = nearest(*role, known);
      checker.diagnostics().error(word, "unknown role '" + *role + "' in " + path,
                                  {(near.empty() ? "" : "did you mean '" + near + "'? ") +
                                   ("known roles: " + comma_list(known))});
    } else if (std::find(roles.begin(), roles.end(), *role) != roles.end()) {
      checker.diagnostics().error(word, "role '" + *role + "' is named twice in " + path);
    } else {
      roles.push_back(*role);
      stored.items.push_back(read_word->stored);
    }
  };
  if (node.is_list()) {
    for (const Node& word : node.items) read(word);
    if (node.items.empty()) checker.diagnostics().error(node, "'role' in " + path + " is empty");
  } else {
    read(node);
  }
  out.add("role", node.at, std::move(stored));
  return roles;
}

// A word of the group's own, also put into `out`; empty = not given.
std::string read_word(Checker& checker, const Node& map, const std::string& key,
                      const std::string& path, Node& out) {
  const Entry* entry = map.find(key);
  if (!entry) return "";
  auto word = checker.word(entry->value, "'" + key + "' in " + path);
  if (!word) return "";
  out.add(key, entry->at, std::move(word->stored));
  return word->text;
}

void check_pattern(Checker& checker, const Node& node, const std::string& pattern,
                   const std::string& path) {
  std::string wrong =
      pattern.size() > kMaxPattern ? "longer than " + std::to_string(kMaxPattern) + " bytes" : "";
  try {
    if (wrong.empty()) (void)std::regex(pattern);
  } catch (const std::regex_error& error) {
    wrong = std::string("not a regular expression: ") + error.what();
  }
  if (!wrong.empty()) checker.diagnostics().error(node, "'match' in " + path + " is " + wrong);
}

OptimizerGroup read_group(Checker& checker, const Node& map, const std::string& path, Node& out) {
  OptimizerGroup group;
  if (const Entry* role = map.find("role"))
    group.roles = read_roles(checker, role->value, path, out);
  group.match = read_word(checker, map, "match", path, out);
  if (!group.match.empty()) check_pattern(checker, map.find("match")->value, group.match, path);
  group.name = read_word(checker, map, "name", path, out);
  group.component = checker.component(map, Kind::optimizer, path, path, out);
  return group;
}

// adamw; of several AdamW groups adamw_norm_bias; of several of those adamw_norm_bias_2.
void name_groups(std::vector<OptimizerGroup>& groups) {
  std::map<std::string, int> taken, plugins;
  for (const OptimizerGroup& group : groups) {
    if (!group.name.empty())
      ++taken[group.name];
    else
      ++plugins[group.component.plugin];
  }
  for (OptimizerGroup& group : groups) {
    if (!group.name.empty()) continue;
    std::string name = group.component.plugin;
    if (plugins[name] > 1 || taken.count(name))
      for (const std::string& role : group.roles) name += "_" + role;
    std::string unique = name;
    for (int i = 2; taken.count(unique); ++i) unique = name + "_" + std::to_string(i);
    ++taken[unique];
    group.name = unique;
  }
}

std::string element(const std::string& path, size_t index, size_t count) {
  return count == 1 ? path : join(path, std::to_string(index));
}

// A component on its own stays a map and a list a list, so that paths into them stay true.
void store(std::vector<Node> nodes, const Node* written, Node& out) {
  if (nodes.size() == 1 && written && written->is_map()) {
    out = std::move(nodes[0]);
  } else {
    out = empty_list(nodes.empty() ? Position{} : nodes[0].at);
    out.items = std::move(nodes);
  }
}

}  // namespace

// dsv3::role_name's words; that function lives with the tensors.
const std::vector<std::string>& role_words() {
  static const std::vector<std::string> words{"matrix", "embedding", "head",
                                              "norm",   "router",    "bias"};
  return words;
}

std::vector<LayerRange> layer_ranges(Checker& checker, const std::string& path, Kind kind,
                                     int64_t layers, Node& out) {
  const std::vector<const Node*> maps = checker.components_at(path, kind, false);
  std::vector<LayerRange> ranges;
  std::vector<Node> nodes;
  std::vector<Placed> placed;
  for (size_t i = 0; i < maps.size(); ++i) {
    const std::string where = element(path, i, maps.size());
    LayerRange range{0, std::max<int64_t>(layers, 1) - 1, {}};
    const Entry* entry = maps[i]->find("layers");
    if (entry) {
      const auto word = checker.word(entry->value, "'layers' in " + where);
      if (word && parse_range(word->text, layers - 1, range.first, range.last))
        placed.push_back({range.first, range.last, &entry->value});
      else if (word)
        checker.diagnostics().error(
            entry->value,
            "'layers' in " + where + " must be a layer or a range, got '" + word->text + "'",
            {"layers count from 0; write 3, 0-1, or 2- up to the last"});
    } else if (maps.size() > 1) {
      checker.diagnostics().error(*maps[i], where + " does not say for which layers it is",
                                  {"write layers: 0-1"});
    }
    Node node = make_map(maps[i]->at);
    const std::string layers_text = range_text(range.first, range.last);
    range.component = checker.component(*maps[i], kind, where, "layers " + layers_text, node);
    if (range.first != 0 || range.last != layers - 1) {
      Node stored = string_node(layers_text);
      stored.at = entry ? entry->value.at : Position{};
      stored.quoted = false;
      node.entries.insert(node.entries.begin(), {"layers", stored.at, stored, ""});
    }
    nodes.push_back(std::move(node));
    ranges.push_back(std::move(range));
  }
  const bool all_placed = maps.size() == 1 || placed.size() == maps.size();
  if (layers > 0 && all_placed) check_tiling(placed, layers, path, checker.diagnostics());
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const LayerRange& a, const LayerRange& b) { return a.first < b.first; });
  store(std::move(nodes), checker.written(path), out);
  return ranges;
}

std::vector<OptimizerGroup> optimizer_groups(Checker& checker, Node& out) {
  const std::vector<const Node*> maps = checker.components_at("optimizer", Kind::optimizer, false);
  std::vector<OptimizerGroup> groups;
  std::vector<Node> nodes;
  std::map<std::string, const Node*> names;
  for (size_t i = 0; i < maps.size(); ++i) {
    Node node = make_map(maps[i]->at);
    groups.push_back(read_group(checker, *maps[i], element("optimizer", i, maps.size()), node));
    nodes.push_back(std::move(node));
    const std::string& name = groups.back().name;
    if (!name.empty() && !names.emplace(name, maps[i]).second)
      checker.diagnostics().error(maps[i]->find("name")->value,
                                  "two optimizer groups are called '" + name + "'");
  }
  name_groups(groups);
  store(std::move(nodes), checker.written("optimizer"), out);
  return groups;
}

std::vector<ComponentSpec> trackers(Checker& checker, Node& out) {
  const std::vector<const Node*> maps = checker.components_at("tracker", Kind::tracker, true);
  std::vector<ComponentSpec> specs;
  std::vector<Node> nodes;
  for (size_t i = 0; i < maps.size(); ++i) {
    Node node = make_map(maps[i]->at);
    specs.push_back(
        checker.component(*maps[i], Kind::tracker, element("tracker", i, maps.size()), "", node));
    nodes.push_back(std::move(node));
  }
  store(std::move(nodes), checker.written("tracker"), out);
  return specs;
}

}  // namespace dsv3::config
