#include "config/check.h"

#include <algorithm>
#include <filesystem>

#include <dsv3/runtime/suggest.h>

#include "config/schemas.h"
#include "config/slots.h"

namespace dsv3::config {
namespace {

std::vector<std::string> keys_of(const Schema& schema) {
  std::vector<std::string> keys;
  for (const OptionSpec& spec : schema.options) keys.push_back(spec.key);
  return keys;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// "a, b or c".
std::string either(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i)
    text += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return text;
}

std::string quoted(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "'" : ", '") + word + "'";
  return text;
}

}  // namespace

std::string Scope::text() const {
  if (path.empty()) return "the experiment";
  return plugin.empty() ? path : path + " (plugin '" + plugin + "')";
}

const Node* Checker::section(const std::string& path) {
  const Node* node = find_path(root_, path);
  if (!node || node->is_null()) return nullptr;
  if (node->is_map()) return node;
  // Below something that is no map there is nothing to find, so this is reported once.
  diagnostics_.error(*node, "'" + path + "' must be a map of keys and values, got " + got(*node),
                     {"write " + path + ": {KEY: VALUE}"});
  return nullptr;
}

Position Checker::position_of(const Node* map) const {
  return map ? map->at : Position{root_.at.source, 1, 1};
}

OptionValues Checker::values(const Node* map, const Schema& schema, const Scope& scope, Node& out) {
  OptionValues values;
  bool complete = true;
  std::vector<const Entry*> dropped;
  if (map)
    for (const Entry& entry : map->entries) {
      if (contains(scope.others, entry.key) || schema.find(entry.key)) continue;
      if (dropped_with_swap(entry, scope))
        dropped.push_back(&entry);
      else
        unknown_key(entry, schema, scope);
    }
  for (const OptionSpec& spec : schema.options) {
    const Entry* entry = map ? map->find(spec.key) : nullptr;
    if (entry) {
      const std::string what = "'" + spec.key + "' in " + scope.text();
      if (auto converted = convert(spec, entry->value, what, resolver_, diagnostics_)) {
        add_convention(spec, converted->value, scope);
        values[spec.key] = std::move(converted->value);
        out.add(spec.key, entry->at, std::move(converted->stored));
      } else {
        complete = false;
      }
    } else if (spec.required) {
      diagnostics_.error(position_of(map), 1, "'" + spec.key + "' is missing in " + scope.text(),
                         {spec.doc});
      complete = false;
    } else {
      add_default(spec, scope, values, out);
    }
  }
  note_dropped(dropped, scope);
  if (complete) run_checks(map, schema, scope, values);
  return values;
}

void Checker::use_conventions(const std::string& implementation) {
  implementation_ = implementation;
  implementation_at_ = {diagnostics_.add_source("model.conventions", implementation, false), 1, 1};
}

// What an option has that the experiment does not set.
void Checker::add_default(const OptionSpec& spec, const Scope& scope, OptionValues& values,
                          Node& out) {
  const auto other = spec.by_implementation.find(implementation_);
  const OptionValue& value =
      other == spec.by_implementation.end() ? spec.default_value : other->second;
  add_convention(spec, value, scope);
  if (other != spec.by_implementation.end()) {
    values[spec.key] = value;
    Node stored = value_node(spec, value);
    stored.at = implementation_at_;
    out.add(spec.key, implementation_at_, std::move(stored));
  } else if (misfit(spec, value).empty()) {
    // A default outside the option's own range means "not set" and has no spelling.
    out.add(spec.key, {}, value_node(spec, value));
  }
}

void Checker::run_checks(const Node* map, const Schema& schema, const Scope& scope,
                         const OptionValues& values) {
  if (schema.checks.empty() || !schema.make) return;
  const std::shared_ptr<void> options = schema.make();
  for (const OptionSpec& spec : schema.options)
    if (const auto value = values.find(spec.key); value != values.end())
      spec.store(options.get(), value->second);
  for (const auto& check : schema.checks)
    if (const std::string wrong = check(options.get()); !wrong.empty()) {
      const std::string text = (scope.path.empty() ? "" : scope.text() + ": ") + wrong;
      // A text that starts with an option is about that option.
      const Entry* entry = map ? map->find(wrong.substr(0, wrong.find(' '))) : nullptr;
      if (entry)
        diagnostics_.error(entry->value, text);
      else
        diagnostics_.error(position_of(map), 1, text);
    }
}

void Checker::add_convention(const OptionSpec& spec, const OptionValue& value, const Scope& scope) {
  if (!spec.convention) return;
  const std::string text = value_text(value);
  std::string key = join(scope.conventions, spec.key);
  const auto [known, added] = conventions_.emplace(key, text);
  if (!added && known->second != text) conventions_[key + " (" + scope.part + ")"] = text;
}

bool Checker::dropped_with_swap(const Entry& entry, const Scope& scope) {
  if (!scope.kind || entry.inherited_from.empty()) return false;
  const Schema* before = schema(*scope.kind, entry.inherited_from, "", entry.at);
  return !before || before->find(entry.key);
}

void Checker::note_dropped(const std::vector<const Entry*>& dropped, const Scope& scope) {
  std::map<std::string, std::vector<std::string>> by_plugin;
  for (const Entry* entry : dropped)
    by_plugin[entry->inherited_from].push_back(entry->key + " (" + diagnostics_.place(entry->at) +
                                               ")");
  for (const auto& [plugin, keys] : by_plugin)
    notes_.push_back(scope.path + ": options of '" + plugin + "' that '" + scope.plugin +
                     "' does not have were dropped: " + comma_list(keys));
}

std::vector<std::string> Checker::siblings_with(const std::string& key, const Scope& scope) {
  std::vector<std::string> siblings;
  if (!scope.kind) return siblings;
  for (const std::string& name : catalog_.names(*scope.kind)) {
    if (name == scope.plugin) continue;
    try {
      const Schema* schema = catalog_.schema(*scope.kind, name, "");
      if (schema && schema->find(key)) siblings.push_back(name);
    } catch (const Error&) {
      // A sibling that cannot be loaded is not this experiment's problem.
    }
  }
  return siblings;
}

void Checker::unknown_key(const Entry& entry, const Schema& schema, const Scope& scope) {
  std::vector<std::string> known = keys_of(schema);
  for (const std::string& other : scope.others)
    if (!scope.kind || other != "plugin") known.push_back(other);
  const std::vector<std::string> siblings = siblings_with(entry.key, scope);
  const std::string near = nearest(entry.key, known);
  std::vector<std::string> elsewhere = core_paths_of(entry.key);
  if (elsewhere.empty() && near.empty()) elsewhere = slots_near(entry.key);
  std::string note;
  if (!siblings.empty())
    note = "'" + entry.key + "' is an option of " + quoted(siblings) + ", not of '" + scope.plugin +
           "'";
  else if (!elsewhere.empty() && (!scope.kind || near.empty()))
    note = "did you mean " + either(elsewhere) + "?";
  else if (!near.empty())
    note = "did you mean '" + near + "'?";
  else
    note = known.empty() ? "there are no keys here" : "known keys: " + comma_list(known);
  diagnostics_.error(entry, "unknown key '" + entry.key + "' in " + scope.text(), {note});
}

const Schema* Checker::schema(Kind kind, const std::string& name, const std::string& library,
                              Position at) {
  try {
    return catalog_.schema(kind, name, library);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + "\n  asked for by " + diagnostics_.place(at),
                error.code());
  }
}

std::string Checker::known_plugins(Kind kind) {
  const std::vector<std::string> names = catalog_.names(kind);
  const std::string searched = catalog_.searched();
  return (names.empty() ? "no " + std::string(kind_name(kind)) + " plugin is known"
                        : "known: " + comma_list(names)) +
         (searched.empty() ? "" : "; looked in: " + searched);
}

void Checker::unknown_plugin(const Node& name, Kind kind, const std::string& text) {
  const std::string near = nearest(text, catalog_.names(kind));
  std::string hint = near.empty() ? "" : "did you mean '" + near + "'? ";
  for (const Slot& slot : slots()) {
    const std::vector<std::string> others = catalog_.names(slot.kind);
    if (slot.kind != kind && contains(others, text))
      hint = "'" + text + "' is of kind " + kind_name(slot.kind) + "; ";
  }
  diagnostics_.error(name, "unknown " + std::string(kind_name(kind)) + " plugin '" + text + "'",
                     {hint + known_plugins(kind)});
}

std::optional<Word> Checker::word(const Node& node, const std::string& what) {
  if (!node.is_scalar()) {
    diagnostics_.error(node, what + " must be a word");
    return std::nullopt;
  }
  const Text& text = resolver_.resolve(node);
  if (!text.ok) return std::nullopt;
  return Word{text.value, stored_string(node, text)};
}

// Absolute, so that a run folder's experiment finds it from anywhere.
std::string Checker::library_of(const Node& map, const std::string& path, Node& out) {
  const Entry* entry = map.find("library");
  if (!entry) return "";
  std::optional<Word> name = word(entry->value, "'library' in " + path);
  if (!name) return "";
  const Origin origin = diagnostics_.origin(entry->value.at);
  const std::filesystem::path folder =
      origin.line ? std::filesystem::path(origin.source).parent_path() : std::filesystem::path();
  const std::string library =
      std::filesystem::absolute(folder / name->text).lexically_normal().string();
  if (!resolver_.resolve(entry->value).environment) name->stored.text = string_node(library).text;
  name->stored.quoted = true;
  out.add("library", entry->at, std::move(name->stored));
  return library;
}

ComponentSpec Checker::component(const Node& map, Kind kind, const std::string& path,
                                 const std::string& part, Node& out) {
  ComponentSpec spec;
  spec.kind = kind;
  const Entry* plugin = map.find("plugin");
  if (!plugin || plugin->value.is_null()) {
    diagnostics_.error(map, path + " names no plugin",
                       {"write plugin: NAME; " + known_plugins(kind)});
    return spec;
  }
  std::optional<Word> name = word(plugin->value, "'plugin' in " + path);
  if (!name) return spec;
  spec.plugin = name->text;
  spec.origin = diagnostics_.origin(plugin->value.at);
  out.entries.insert(out.entries.begin(), {"plugin", plugin->at, std::move(name->stored), ""});
  spec.library = library_of(map, path, out);
  const Schema* options = schema(kind, spec.plugin, spec.library, plugin->value.at);
  if (!options) {
    unknown_plugin(plugin->value, kind, spec.plugin);
    return spec;
  }
  Scope scope{path, core_keys(kind), join(kind_name(kind), spec.plugin), kind, spec.plugin, part};
  spec.options = values(&map, *options, scope, out);
  return spec;
}

ComponentSpec Checker::component_at(const std::string& path, Kind kind, bool optional, Node& out) {
  const std::vector<const Node*> maps = components_at(path, kind, optional);
  if (maps.size() == 1) return component(*maps[0], kind, path, path, out);
  ComponentSpec none;
  none.kind = kind;
  return none;
}

std::vector<const Node*> Checker::components_at(const std::string& path, Kind kind, bool optional) {
  const Node* node = find_path(root_, path);
  const Slot* slot = slot_at(path);
  std::vector<const Node*> maps;
  if (!node || node->is_null() || (node->is_list() && slot->list && node->items.empty())) {
    if (!optional)
      diagnostics_.error(
          node ? node->at : position_of(find_path(root_, path.substr(0, path.find('.')))), 1,
          "the experiment names no " + path, {"write " + path + ": NAME; " + known_plugins(kind)});
    return maps;
  }
  if (node->is_map()) return {node};
  const std::string wanted =
      slot->list ? " must be a component or a list of them" : " must be one component";
  if (!node->is_list() || !slot->list) {
    diagnostics_.error(*node, path + wanted);
    return maps;
  }
  for (const Node& item : node->items) {
    if (item.is_map())
      maps.push_back(&item);
    else
      diagnostics_.error(item, path + wanted);
  }
  return maps;
}

}  // namespace dsv3::config
