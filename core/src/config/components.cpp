#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include <dsv3/runtime/suggest.h>

#include "config/check.h"
#include "support/regex.h"

namespace dsv3::config {
namespace {

// Parses "2", "2-11" or "2-". The last form ends at layer `open_end`.
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

// The layers of one component.
struct Placed {
  int64_t first, last;
  const Node* node;  // for the source position in error messages
};

std::string range_text(int64_t first, int64_t last) {
  return first == last ? std::to_string(first) : std::to_string(first) + "-" + std::to_string(last);
}

// Formats "layer 3" or "layers 2-11".
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
      diagnostics.error(*range.node,
                        path + " includes layer " + std::to_string(range.last) +
                            ", which the model does not have",
                        {all});
    if (range.first > next && next < layers)
      diagnostics.error(
          *range.node,
          path + " leaves out " + named_layers(next, std::min(range.first, layers) - 1), {all});
    if (range.first < next)
      diagnostics.error(*range.node,
                        path + " includes " +
                            named_layers(range.first, std::min(next - 1, range.last)) + " twice",
                        {all});
    next = std::max(next, range.last + 1);
  }
  if (next < layers && !placed.empty())
    diagnostics.error(*placed.back().node, path + " leaves out " + named_layers(next, layers - 1),
                      {all});
}

// Reads `role:`, which is a string or a list.
std::vector<std::string> read_roles(Checker& checker, const Node& node, const std::string& path) {
  std::vector<std::string> roles;
  const std::vector<std::string>& known = role_words();
  const auto read = [&](const Node& item) {
    const std::optional<std::string> role = checker.word(item, "'role' in " + path);
    if (!role) return;
    if (std::find(known.begin(), known.end(), *role) == known.end()) {
      checker.diagnostics().error(item,
                                  "unknown role '" + checker.shown_word(item) + "' in " + path,
                                  {suggestion(checker.shown_word(item), known, "known roles")});
    } else if (std::find(roles.begin(), roles.end(), *role) != roles.end()) {
      checker.diagnostics().error(item, "role '" + *role + "' appears twice in " + path);
    } else {
      roles.push_back(*role);
    }
  };
  if (node.is_list()) {
    for (const Node& item : node.items) read(item);
    if (node.items.empty()) checker.diagnostics().error(node, "'role' in " + path + " is empty");
  } else {
    read(node);
  }
  checker.record(join(path, "role"), roles, node);
  return roles;
}

// Reads the string value of `key` in a component's map; empty = not set.
std::string read_word(Checker& checker, const Node& map, const std::string& key,
                      const std::string& path) {
  const Entry* entry = map.find(key);
  if (!entry) return "";
  const std::optional<std::string> word = checker.word(entry->value, "'" + key + "' in " + path);
  if (!word) return "";
  checker.record(join(path, key), *word, entry->value);
  return *word;
}

void check_pattern(Checker& checker, const Node& node, const std::string& pattern,
                   const std::string& path) {
  try {
    (void)Regex(pattern);
  } catch (const Error& error) {
    checker.diagnostics().error(node, "'match' in " + path + " " + error.what());
  }
}

OptimizerGroup read_group(Checker& checker, const Node& map, const std::string& path) {
  OptimizerGroup group;
  if (const Entry* role = map.find("role")) group.roles = read_roles(checker, role->value, path);
  group.match = read_word(checker, map, "match", path);
  if (!group.match.empty()) check_pattern(checker, map.find("match")->value, group.match, path);
  group.name = read_word(checker, map, "name", path);
  group.component = checker.component(map, Kind::optimizer, path, path);
  return group;
}

// Names each group PLUGIN, or PLUGIN_ROLE if several groups use the plugin, or PLUGIN_ROLE_2 if
// several of those have the same roles.
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

// Returns the path of the component at `index`, as used in the resolved experiment.
std::string element(Checker& checker, const std::string& path, size_t index) {
  return checker.node_at(path)->is_list() ? join(path, std::to_string(index)) : path;
}

// Reads the layers of the component at `path`. It must set `layers` unless it is the only
// component.
std::optional<Placed> read_layers_of(Checker& checker, const Node& map, const std::string& path,
                                     int64_t layers) {
  const Entry* entry = map.find("layers");
  if (!entry) return std::nullopt;
  const std::optional<std::string> word = checker.word(entry->value, "'layers' in " + path);
  if (!word) return std::nullopt;
  Placed placed{0, 0, &entry->value};
  if (parse_range(*word, layers - 1, placed.first, placed.last)) return placed;
  checker.diagnostics().error(
      entry->value,
      "'layers' in " + path + " must be a layer index or an ascending range, got '" +
          checker.shown_word(entry->value) + "'",
      {"layers are numbered from 0; use a layer such as 3, a range such as 0-1, or an open-ended "
       "range such as 2- (layer 2 to the last)"});
  return std::nullopt;
}

}  // namespace

// The names that dsv3::role_name returns, repeated here because that function depends on LibTorch.
const std::vector<std::string>& role_words() {
  static const std::vector<std::string> words{"matrix", "embedding", "head",
                                              "norm",   "router",    "bias"};
  return words;
}

std::vector<LayerRange> layer_ranges(Checker& checker, const std::string& path, Kind kind,
                                     int64_t layers) {
  const std::vector<const Node*> maps = checker.components_at(path, kind);
  std::vector<LayerRange> ranges;
  std::vector<Placed> placed;
  for (size_t i = 0; i < maps.size(); ++i) {
    const std::string where = element(checker, path, i);
    LayerRange range{0, std::max<int64_t>(layers, 1) - 1, {}};
    if (const auto read = read_layers_of(checker, *maps[i], where, layers)) {
      placed.push_back(*read);
      range.first = read->first;
      range.last = read->last;
    }
    const std::string text = range_text(range.first, range.last);
    if (range.first != 0 || range.last != layers - 1) {
      const Entry* entry = maps[i]->find("layers");
      checker.record(join(where, "layers"), text, entry ? entry->value : Node{}, text);
    }
    range.component = checker.component(*maps[i], kind, where, "layers " + text);
    if (maps.size() > 1 && !maps[i]->find("layers") &&
        !checker.is_misspelled(join(where, "layers")))
      checker.diagnostics().error(*maps[i], where + " has no `layers`", {"write layers: 0-1"});
    ranges.push_back(std::move(range));
  }
  const bool all_placed = maps.size() == 1 || placed.size() == maps.size();
  if (layers > 0 && all_placed) check_tiling(placed, layers, path, checker.diagnostics());
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const LayerRange& a, const LayerRange& b) { return a.first < b.first; });
  return ranges;
}

std::vector<OptimizerGroup> optimizer_groups(Checker& checker) {
  const std::vector<const Node*> maps = checker.components_at("optimizer", Kind::optimizer);
  std::vector<OptimizerGroup> groups;
  std::map<std::string, const Node*> names;
  for (size_t i = 0; i < maps.size(); ++i) {
    groups.push_back(read_group(checker, *maps[i], element(checker, "optimizer", i)));
    const std::string& name = groups.back().name;
    if (!name.empty() && !names.emplace(name, maps[i]).second)
      checker.diagnostics().error(maps[i]->find("name")->value,
                                  "two optimizer groups are named '" + name + "'");
  }
  name_groups(groups);
  return groups;
}

std::vector<ComponentSpec> components(Checker& checker, const Slot& slot) {
  const std::string path(slot.path);
  const std::vector<const Node*> maps = checker.components_at(path, slot.kind);
  std::vector<ComponentSpec> specs;
  for (size_t i = 0; i < maps.size(); ++i) {
    specs.push_back(checker.component(*maps[i], slot.kind, element(checker, path, i), ""));
    // Two trackers would write the same file.
    const auto same = std::ranges::find_if(specs, [&](const ComponentSpec& spec) {
      return spec.plugin == specs[i].plugin && spec.library == specs[i].library &&
             spec.options == specs[i].options;
    });
    if (!specs[i].plugin.empty() && same->path != specs[i].path)
      checker.diagnostics().error(*maps[i], specs[i].path + " repeats " + same->path,
                                  {"remove it, or give it other options"});
  }
  const Node* none = checker.node_at(path);
  if (maps.empty() && slot.list)
    checker.record(path, std::vector<std::string>(), none ? *none : Node{});
  return specs;
}

}  // namespace dsv3::config
