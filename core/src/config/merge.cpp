// Merges an experiment's configuration layers, lowest precedence first.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <dsv3/runtime/suggest.h>

#include "config/layers.h"
#include "config/schemas.h"

namespace dsv3::config {
namespace {

// Returns {plugin: <name>} with the source position of the name.
Node component_of(Node name) {
  Node map = make_map(name.at);
  map.layer = name.layer;
  const Position at = name.at;
  map.add("plugin", at, std::move(name));
  return map;
}

// Sets the source position of everything in an alias's expansion to that of the alias's name.
void move_to(Node& node, Position at, int layer) {
  node.at = at;
  node.layer = layer;
  for (Node& item : node.items) move_to(item, at, layer);
  for (Entry& entry : node.entries) {
    entry.at = at;
    move_to(entry.value, at, layer);
  }
}

// Formats "optimizer.0 (adamw), optimizer.1 (muon)".
std::string elements(const Node& list, const std::string& path) {
  std::vector<std::string> words;
  for (size_t i = 0; i < list.items.size(); ++i) {
    const Entry* plugin = list.items[i].find("plugin");
    words.push_back(join(path, std::to_string(i)) +
                    (plugin && plugin->value.is_scalar() ? " (" + plugin->value.text + ")" : ""));
  }
  return comma_list(words);
}

// The components configured at a slot: one map, or the items of a list.
std::vector<Node*> elements_of(Node& slot) {
  if (!slot.is_list()) return {&slot};
  std::vector<Node*> elements;
  for (Node& item : slot.items) elements.push_back(&item);
  return elements;
}

// The component's plugin; empty = unset.
std::string plugin_of(const Node& component) {
  const Entry* plugin = component.is_map() ? component.find("plugin") : nullptr;
  return plugin && plugin->value.is_scalar() ? plugin->value.text : "";
}

// The key with an index that an entry of a list may mean: "1.lr" for muon.lr, else "0.<key>".
std::string indexed(const Node& list, const Entry& entry) {
  if (entry.value.is_map() && !entry.value.entries.empty())
    for (size_t i = 0; i < list.items.size(); ++i)
      if (plugin_of(list.items[i]) == entry.key)
        return join(std::to_string(i), entry.value.entries[0].key);
  return "0." + entry.key;
}

bool same_value(const Node& a, const Node& b) {
  const auto same_entry = [](const Entry& x, const Entry& y) {
    return x.key == y.key && same_value(x.value, y.value);
  };
  return a.type == b.type && a.text == b.text && a.quoted == b.quoted &&
         std::ranges::equal(a.items, b.items, same_value) &&
         std::ranges::equal(a.entries, b.entries, same_entry);
}

bool all_have(const std::vector<const Node*>& components, const Entry& entry) {
  return std::ranges::all_of(components, [&](const Node* component) {
    const Entry* other = component->find(entry.key);
    return other && same_value(other->value, entry.value);
  });
}

/// Components by plugin.
using Components = std::map<std::string, std::vector<const Node*>>;

class Merger {
 public:
  Merger(Diagnostics& diagnostics, Catalog& catalog, std::vector<std::string>& notes)
      : diagnostics_(diagnostics), catalog_(catalog), notes_(notes) {}

  /// Expands short forms: `attention: mha` becomes {plugin: mha}, and an alias is replaced by its
  /// YAML.
  void expand(Node& layer) {
    for (const Slot& slot : slots())
      if (Node* node = find_path(layer, slot.path)) expand_slot(*node, slot.kind, slot.list);
  }

  /// Merges maps and replaces everything else. If the plugin of a component changes, the
  /// component's options record the old plugin's name. Setting train.steps replaces train.tokens,
  /// and vice versa.
  void merge(Node& base, Node&& over) { merge(base, std::move(over), ""); }

  /// Converts {0: {...}, 1: {...}}, which sets the elements of a component list one by one, to a
  /// list.
  void finish(Node& root) {
    for (const Slot& slot : slots()) {
      Node* node = slot.list ? find_path(root, slot.path) : nullptr;
      if (!node || !has_index_keys(*node)) continue;
      Node list = make_node(Node::Type::list, node->at);
      for (size_t i = 0; i < node->entries.size(); ++i)
        if (Entry* element = node->find(std::to_string(i)))
          list.items.push_back(std::move(element->value));
      if (list.items.size() == node->entries.size()) *node = std::move(list);
    }
  }

 private:
  void expand_slot(Node& node, Kind kind, bool list) {
    if (node.is_scalar()) {
      std::optional<Node> meaning = alias(kind, node);
      if (!meaning) {
        node = component_of(std::move(node));
      } else if (meaning->is_list() && !list) {
        diagnostics_.error(
            node,
            "'" + node.text + "' expands to several components, but only one is allowed here");
        node = component_of(std::move(node));
      } else {
        node = std::move(*meaning);
        node.from_alias = true;
      }
    } else if (node.is_list() && list) {
      for (Node& item : node.items) expand_slot(item, kind, false);
    } else if (list && has_index_keys(node)) {
      for (Entry& entry : node.entries) expand_slot(entry.value, kind, false);
    } else if (node.is_map()) {
      expand_map(node, kind);
    }
  }

  // Expands {plugin: <alias>, ...} to the alias's map. Keys next to `plugin` override that map. A
  // plugin with the alias's name takes precedence.
  void expand_map(Node& node, Kind kind) {
    const Entry* plugin = node.find("plugin");
    if (!plugin || !plugin->value.is_scalar() || node.find("library")) return;
    const Node name = plugin->value;
    if (catalog_.alias(kind, name.text).empty() || catalog_.schema(kind, name.text, "")) return;
    std::optional<Node> meaning = alias(kind, name);
    if (!meaning) return;
    if (!meaning->is_map()) {
      diagnostics_.error(name,
                         "'" + name.text +
                             "' expands to several components, so it cannot be combined with other "
                             "keys; write only the name",
                         {std::string(kind_name(kind)) + ": " + name.text});
      return;
    }
    node.erase("plugin");
    for (Entry& entry : node.entries) {
      meaning->erase(entry.key);
      meaning->entries.push_back(std::move(entry));
    }
    meaning->at = node.at;
    node = std::move(*meaning);
  }

  std::optional<Node> alias(Kind kind, const Node& name) {
    const std::string yaml = catalog_.alias(kind, name.text);
    if (yaml.empty()) return std::nullopt;
    const int source = diagnostics_.add_source("alias '" + name.text + "'", yaml, false);
    std::optional<Node> node = parse(diagnostics_, source);
    if (!node || node->is_null()) return std::nullopt;
    if (node->is_scalar()) node = component_of(std::move(*node));
    for (Node& item : node->items)
      if (item.is_scalar()) item = component_of(std::move(item));
    move_to(*node, name.at, name.layer);
    return node;
  }

  void merge(Node& base, Node&& over, const std::string& path) {
    const Slot* slot = slot_at(path);
    const bool removable = slot && slot->optional;
    if (over.is_null() && (base.is_map() || base.is_list()) && !removable)
      return;  // an empty section
    if (base.is_map() && over.is_map()) {
      merge_maps(base, std::move(over), path);
    } else if (base.is_list() && over.is_map()) {
      merge_into_list(base, std::move(over), path);
    } else {
      if (slot && over.from_alias) carry_options(base, over, path);
      base = std::move(over);
    }
  }

  void merge_maps(Node& base, Node&& over, const std::string& path) {
    if (slot_at(path)) change_plugin(base, over, path);
    if (path == "train") replace_length(base, over);
    for (Entry& entry : over.entries) {
      if (Entry* known = base.find(entry.key)) {
        known->at = entry.at;
        known->inherited_from.clear();
        merge(known->value, std::move(entry.value), join(path, entry.key));
      } else {
        base.entries.push_back(std::move(entry));
      }
    }
  }

  void merge_into_list(Node& base, Node&& over, const std::string& path) {
    if (has_index_keys(over)) {
      for (Entry& entry : over.entries) {
        const size_t index = std::stoul(entry.key);
        if (index < base.items.size())
          merge(base.items[index], std::move(entry.value), join(path, entry.key));
        else
          diagnostics_.error(entry, path + " has no element " + entry.key,
                             {"it has " + elements(base, path)});
      }
      return;
    }
    const Slot* slot = slot_at(path);
    if (slot && over.find("plugin")) {
      carry_options(base, over, path);
      base = std::move(over);
    } else if (slot && base.items.size() == 1) {
      merge(base.items[0], std::move(over), join(path, "0"));
    } else if (slot && !over.entries.empty()) {
      diagnostics_.error(
          over.entries.front(),
          path + " is a list of " + std::to_string(base.items.size()) +
              " components; select one by its index",
          {"it has " + elements(base, path), "write " + join(path, indexed(base, over.entries[0])) +
                                                 "=... on the command line, set the whole list, or "
                                                 "set a plugin that replaces the list"});
    } else {
      base = std::move(over);
    }
  }

  // Copies options from the components in `base` to those in `over` that replace them. A component
  // receives the options of those with its own plugin. If there are none, it receives the options
  // of the replaced plugin, of which the checker drops those that the two plugins do not share.
  void carry_options(Node& base, Node& over, const std::string& path) {
    Components before;
    for (const Node* component : elements_of(base))
      if (const std::string plugin = plugin_of(*component); !plugin.empty())
        before[plugin].push_back(component);
    Components replaced = before;
    for (const Node* component : elements_of(over)) replaced.erase(plugin_of(*component));
    bool inherited = false;
    for (Node* component : elements_of(over)) {
      if (const auto same = before.find(plugin_of(*component)); same != before.end()) {
        copy_options(*same, *component, path, /*keeps_plugin=*/true);
      } else if (replaced.size() == 1) {
        copy_options(*replaced.begin(), *component, path, /*keeps_plugin=*/false);
        inherited = true;
      }
    }
    if (!inherited)
      for (const auto& [plugin, components] : replaced) note_replaced(plugin, components, path);
  }

  // Copies the options on which all components in `from` agree.
  void copy_options(const Components::value_type& from, Node& to, const std::string& path,
                    bool keeps_plugin) {
    const auto& [plugin, components] = from;
    std::vector<std::string> core = core_keys(slot_at(path)->kind);
    if (keeps_plugin) std::erase(core, "library");
    std::set<std::string> seen;
    for (const Node* component : components)
      for (Entry entry : component->entries) {
        if (std::ranges::count(core, entry.key) || to.find(entry.key)) continue;
        if (!seen.insert(entry.key).second) continue;
        if (!all_have(components, entry)) {
          notes_.push_back(path + ": option '" + entry.key + "' of '" + plugin +
                           "' was dropped, because its components do not agree on a value (" +
                           diagnostics_.place(entry.at) + ")");
          continue;
        }
        if (!keeps_plugin && entry.inherited_from.empty()) entry.inherited_from = plugin;
        to.entries.push_back(std::move(entry));
      }
  }

  void note_replaced(const std::string& plugin, const std::vector<const Node*>& components,
                     const std::string& path) {
    const std::vector<std::string> core = core_keys(slot_at(path)->kind);
    std::vector<std::string> options;
    for (const Node* component : components)
      for (const Entry& entry : component->entries)
        if (!std::ranges::count(core, entry.key))
          options.push_back(entry.key + " (" + diagnostics_.place(entry.at) + ")");
    if (!options.empty())
      notes_.push_back(path + ": options of '" + plugin + "' were dropped: " + comma_list(options));
  }

  void change_plugin(Node& base, const Node& over, const std::string& path) {
    const Entry* before = base.find("plugin");
    const Entry* after = over.find("plugin");
    if (!before || !after || !before->value.is_scalar() || !after->value.is_scalar()) return;
    const std::string old_name = before->value.text;
    const std::string& new_name = after->value.text;
    if (old_name == new_name) return;
    const int layer = after->value.layer;
    const std::vector<std::string> core = core_keys(slot_at(path)->kind);
    for (Entry& entry : base.entries)
      if (std::find(core.begin(), core.end(), entry.key) == core.end() &&
          entry.value.layer < layer && entry.inherited_from.empty())
        entry.inherited_from = old_name;
    const Entry* library = base.find("library");
    if (library && library->value.layer < layer && !over.find("library")) {
      notes_.push_back(path + ": library '" + library->value.text + "' of '" + old_name +
                       "' is not used for '" + new_name + "'");
      base.erase("library");
    }
  }

  void replace_length(Node& train, const Node& over) {
    for (const auto& [given, other] :
         {std::pair("steps", "tokens"), std::pair("tokens", "steps")}) {
      const Entry* entry = over.find(given);
      const Entry* earlier = train.find(other);
      if (!entry || over.find(other) || !earlier || earlier->value.layer >= entry->value.layer)
        continue;
      notes_.push_back(std::string("train.") + given + " (" + diagnostics_.place(entry->value.at) +
                       ") replaces train." + other + " (" + diagnostics_.place(earlier->value.at) +
                       ")");
      train.erase(other);
    }
  }

  Diagnostics& diagnostics_;
  Catalog& catalog_;
  std::vector<std::string>& notes_;
};

}  // namespace

Node merge_layers(std::vector<Layer> layers, Diagnostics& diagnostics, Catalog& catalog,
                  std::vector<std::string>& notes) {
  Merger merger(diagnostics, catalog, notes);
  Node root = make_map({});
  const auto number = [](auto& self, Node& node, int layer) -> void {
    node.layer = layer;
    for (Node& item : node.items) self(self, item, layer);
    for (Entry& entry : node.entries) self(self, entry.value, layer);
  };
  for (size_t i = 0; i < layers.size(); ++i)
    for (Node& tree : layers[i].trees) {
      number(number, tree, static_cast<int>(i) + 1);
      if (layers[i].is_file) root.at = tree.at;  // the experiment itself is the last file
      merger.expand(tree);
      merger.merge(root, std::move(tree));
    }
  merger.finish(root);
  return root;
}

}  // namespace dsv3::config
