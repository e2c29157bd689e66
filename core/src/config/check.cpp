#include "config/check.h"

#include <algorithm>
#include <filesystem>

#include <dsv3/runtime/suggest.h>

namespace dsv3::config {
namespace {

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::ranges::count(words, word);
}

// Formats "a, b or c".
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

// Resolves relative paths, so that a run folder works from every folder. Leaves "" (unset) as it
// is.
void make_absolute(OptionValue& value) {
  const auto resolve = [](std::string& path) {
    if (!path.empty()) path = std::filesystem::absolute(path).lexically_normal().string();
  };
  if (auto* path = std::get_if<std::string>(&value)) resolve(*path);
  if (auto* paths = std::get_if<std::vector<std::string>>(&value))
    for (std::string& path : *paths) resolve(path);
}

}  // namespace

std::string Scope::text() const {
  if (path.empty()) return "the experiment";
  return plugin.empty() ? path : path + " (plugin '" + plugin + "')";
}

Checker::Checker(const Node& root, Diagnostics& diagnostics, Catalog& catalog,
                 Experiment& experiment)
    : root_(root),
      diagnostics_(diagnostics),
      catalog_(catalog),
      experiment_(experiment),
      resolver_(root, diagnostics) {
  // `position.rope.layout: halves` is equivalent to the map {position: {rope: {layout: halves}}}.
  const auto add = [this](auto& self, const Node& map, const std::string& path) -> void {
    for (const Entry& entry : map.entries)
      if (entry.value.is_map())
        self(self, entry.value, join(path, entry.key));
      else
        given_conventions_[join(path, entry.key)] = &entry;
  };
  if (const Node* conventions = section("conventions")) add(add, *conventions, "");
}

const Node* Checker::section(const std::string& path) {
  const Node* node = find_path(root_, path);
  if (!node || node->is_null()) return nullptr;
  if (node->is_map()) return node;
  diagnostics_.error(*node, "'" + path + "' must be a map of keys and values, got " + shown(*node),
                     {"write " + path + ": {KEY: VALUE}"});
  return nullptr;
}

Position Checker::position_of(const Node* map) const {
  return map ? map->at : Position{root_.at.source, 1, 1};
}

void Checker::record(const std::string& path, OptionValue value, const Node& node,
                     std::string written) {
  if (std::string reference = reference_yaml(node, resolver_); !reference.empty())
    written = std::move(reference);
  // Inserts the value after the others in its section, so that each section stays together
  // regardless of the reading order.
  const std::string section = path.substr(0, path.find('.') + 1);
  std::vector<ResolvedValue>& values = experiment_.resolved.values;
  const auto last = std::find_if(values.rbegin(), values.rend(), [&](const ResolvedValue& known) {
    return !section.empty() && known.path.starts_with(section);
  });
  values.insert(last == values.rend() ? values.end() : last.base(),
                {path, std::move(value), diagnostics_.origin(node.at), std::move(written)});
}

OptionValues Checker::values(const Node* map, const Schema& schema, const Scope& scope) {
  OptionValues values;
  bool complete = true;
  std::vector<const Entry*> dropped;
  if (map)
    for (const Entry& entry : map->entries) {
      if (contains(scope.others, entry.key)) continue;
      if (is_dropped_option(entry, schema, scope))
        dropped.push_back(&entry);
      else if (!schema.find(entry.key))
        unknown_key(entry, schema, scope);
    }
  checked_.insert(scope.conventions);
  for (const OptionSpec& spec : schema.options) {
    const Entry* written_entry = map ? map->find(spec.key) : nullptr;
    const bool is_dropped = std::ranges::count(dropped, written_entry) > 0;
    const Entry* entry = is_dropped ? nullptr : written_entry;
    const Node* preset = given_convention(spec, scope);
    const Node* node = entry ? &entry->value : preset;
    const std::string path = join(scope.path, spec.key);
    if (node) {
      const std::string what = "'" + spec.key + "' in " + scope.text();
      if (auto value = convert(spec, *node, what, resolver_)) {
        if (spec.input_path) make_absolute(*value);
        add_convention(spec, *value, scope);
        record(path, *value, *node, word_of(spec, *value));
        values[spec.key] = std::move(*value);
      } else {
        complete = false;
      }
    } else if (spec.required) {
      if (!is_misspelled(path))
        diagnostics_.error(
            position_of(map), 1, "'" + spec.key + "' is missing in " + scope.text(),
            {spec.doc + (is_dropped ? "; the value for '" + written_entry->inherited_from + "' (" +
                                          diagnostics_.place(written_entry->at) + ") is not used"
                                    : "")});
      complete = false;
    } else {
      add_convention(spec, spec.default_value, scope);
      const std::string written = word_of(spec, spec.default_value);
      // Record an unset option only if a keyword, such as `auto`, represents the unset value.
      if (!written.empty() || !std::holds_alternative<std::monostate>(spec.default_value))
        record(path, spec.default_value, Node{}, written);
    }
  }
  note_dropped(dropped, scope);
  if (complete) run_checks(map, schema, scope, values);
  return values;
}

std::map<std::string, std::string> Checker::tags() {
  std::map<std::string, std::string> tags;
  const auto add = [&](auto& self, const Node& map, const std::string& path) -> void {
    for (const Entry& entry : map.entries) {
      const std::string name = join(path, entry.key);
      if (!std::ranges::all_of(entry.key, is_key_character))
        diagnostics_.error(entry, "invalid name of a tag: '" + entry.key + "'",
                           {"use letters, digits, '_', '-' and '.'"});
      else if (entry.value.is_map())
        self(self, entry.value, name);
      else if (entry.value.is_null())
        continue;
      else if (const auto value = word(entry.value, "tag '" + name + "'")) {
        if (name.starts_with("dsv3."))
          diagnostics_.error(entry, "tags that start with 'dsv3.' are reserved",
                             {"choose another name"});
        record("tags." + name, *value, entry.value);
        tags[name] = shown_word(entry.value);
      }
    }
  };
  if (const Node* map = section("tags")) add(add, *map, "");
  return tags;
}

const Node* Checker::given_convention(const OptionSpec& spec, const Scope& scope) {
  if (!spec.convention) return nullptr;
  const std::string key = join(scope.conventions, spec.key);
  known_conventions_.insert(key);
  const auto given = given_conventions_.find(key);
  return given == given_conventions_.end() ? nullptr : &given->second->value;
}

void Checker::check_conventions() {
  const std::vector<std::string> known(known_conventions_.begin(), known_conventions_.end());
  for (const auto& [key, entry] : given_conventions_) {
    if (known_conventions_.contains(key)) continue;
    const std::string component = key.substr(0, key.rfind('.'));
    const size_t dot = component.find('.');
    // A preset may set conventions of plugins that this experiment does not use.
    const auto is_unused = [&](const Slot& slot) {
      return component.substr(0, dot) == kind_name(slot.kind) && dot != component.npos &&
             contains(catalog_.names(slot.kind), component.substr(dot + 1));
    };
    if (!checked_.contains(component) && std::any_of(slots().begin(), slots().end(), is_unused))
      continue;
    const std::string near = did_you_mean(key, known);
    diagnostics_.error(
        *entry, "unknown convention '" + key + "'",
        {near.empty() ? "conventions of this experiment: " + comma_list(known) : near});
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
      // If the message starts with an option's name, underline that option.
      if (const auto* entry = map ? map->find(wrong.substr(0, wrong.find(' '))) : nullptr)
        diagnostics_.error(entry->value, text);
      else
        diagnostics_.error(position_of(map), 1, text);
    }
}

void Checker::add_convention(const OptionSpec& spec, const OptionValue& value, const Scope& scope) {
  if (!spec.convention) return;
  const std::string text = value_text(value);
  const std::string key = join(scope.conventions, spec.key);
  const auto [known, added] = experiment_.conventions.emplace(key, text);
  if (!added && known->second != text)
    experiment_.conventions[key + " (" + scope.part + ")"] = text;
}

bool Checker::is_dropped_option(const Entry& entry, const Schema& schema, const Scope& scope) {
  if (!scope.kind || entry.inherited_from.empty()) return false;
  const Schema* former = this->schema(*scope.kind, entry.inherited_from, "", entry.at);
  if (!former) return true;
  const OptionSpec *before = former->find(entry.key), *now = schema.find(entry.key);
  if (!before || !now) return before || now;  // in neither schema, the key is unknown
  return before->shared.empty() || before->shared != now->shared;
}

void Checker::note_dropped(const std::vector<const Entry*>& dropped, const Scope& scope) {
  std::map<std::string, std::vector<std::string>> by_plugin;
  for (const Entry* entry : dropped)
    by_plugin[entry->inherited_from].push_back(entry->key + " (" + diagnostics_.place(entry->at) +
                                               ")");
  for (const auto& [plugin, keys] : by_plugin)
    experiment_.notes.push_back(scope.path + ": options of '" + plugin + "' that '" + scope.plugin +
                                "' does not share were dropped: " + comma_list(keys));
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
      // Skip plugins that cannot be loaded, because this experiment does not use them.
    }
  }
  return siblings;
}

void Checker::unknown_key(const Entry& entry, const Schema& schema, const Scope& scope) {
  std::vector<std::string> known;
  for (const OptionSpec& spec : schema.options) known.push_back(spec.key);
  for (const std::string& other : scope.others)
    if (!scope.kind || other != "plugin") known.push_back(other);
  const std::vector<std::string> siblings = siblings_with(entry.key, scope);
  const std::string near = did_you_mean(entry.key, known);
  std::vector<std::string> elsewhere = core_paths_of(entry.key);
  if (elsewhere.empty() && near.empty()) elsewhere = slots_near(entry.key);
  std::string note;
  if (!siblings.empty())
    note = "'" + entry.key + "' is an option of " + quoted(siblings) + ", not of '" + scope.plugin +
           "'";
  else if (!elsewhere.empty() && (!scope.kind || near.empty())) {
    note = "did you mean " + either(elsewhere) + "?";
    misspelled_.insert(elsewhere.begin(), elsewhere.end());
  } else if (!near.empty()) {
    note = near;
    misspelled_.insert(join(scope.path, nearest(entry.key, known)));
  } else
    note = known.empty() ? "this section has no keys" : "known keys: " + comma_list(known);
  diagnostics_.error(entry, "unknown key '" + entry.key + "' in " + scope.text(), {note});
}

const Schema* Checker::schema(Kind kind, const std::string& name, const std::string& library,
                              Position at) {
  try {
    return catalog_.schema(kind, name, library);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + "\n  requested by " + diagnostics_.place(at),
                error.code());
  }
}

std::string Checker::known_plugins(Kind kind) {
  std::vector<std::string> names = catalog_.names(kind);
  if (kind == Kind::strategy) names.insert(names.begin(), kAutoStrategy);
  const std::string searched = catalog_.searched();
  return (names.empty() ? "no " + std::string(kind_name(kind)) + " plugin was found"
                        : "known: " + comma_list(names)) +
         (searched.empty() ? "" : "; looked in: " + searched);
}

void Checker::unknown_plugin(const Node& name, Kind kind, const std::string& text) {
  std::string hint = did_you_mean(text, catalog_.names(kind));
  if (!hint.empty()) hint += ' ';
  for (const Slot& slot : slots())
    if (slot.kind != kind && contains(catalog_.names(slot.kind), text))
      hint = "'" + text + "' is of kind " + kind_name(slot.kind) + "; ";
  diagnostics_.error(name, "unknown " + std::string(kind_name(kind)) + " plugin '" + text + "'",
                     {hint + known_plugins(kind) +
                      (hint.empty() ? "; pass --plugin-path FOLDER for a plugin elsewhere" : "")});
}

std::optional<std::string> Checker::word(const Node& node, const std::string& what) {
  if (!node.is_scalar()) {
    diagnostics_.error(node, what + " must be a string");
    return std::nullopt;
  }
  const Text& text = resolver_.resolve(node);
  return text.ok ? std::optional(text.value) : std::nullopt;
}

std::string Checker::shown_word(const Node& node) {
  const Text& text = resolver_.resolve(node);
  return text.environment ? node.text : text.value;
}

// Returns an absolute path, so that the experiment stored in a run folder works from any folder.
std::string Checker::library_of(const Node& map, const std::string& path) {
  const Entry* entry = map.find("library");
  if (!entry) return "";
  const std::optional<std::string> name = word(entry->value, "'library' in " + path);
  if (!name) return "";
  const Origin origin = diagnostics_.origin(entry->value.at);
  const std::filesystem::path folder =
      origin.line ? std::filesystem::path(origin.source).parent_path() : std::filesystem::path();
  const std::string library = std::filesystem::absolute(folder / *name).lexically_normal().string();
  record(join(path, "library"), library, entry->value);
  return library;
}

ComponentSpec Checker::component(const Node& map, Kind kind, const std::string& path,
                                 const std::string& part) {
  ComponentSpec spec;
  spec.kind = kind;
  spec.path = path;
  const Entry* plugin = map.find("plugin");
  if (!plugin || plugin->value.is_null()) {
    const auto typo = std::ranges::find_if(map.entries, [](const Entry& entry) {
      return entry.key != "plugin" && !nearest(entry.key, {"plugin"}).empty();
    });
    if (!plugin && typo != map.entries.end())
      diagnostics_.error(*typo, "unknown key '" + typo->key + "' in " + path,
                         {"did you mean 'plugin'?"});
    else
      diagnostics_.error(map, path + " has no plugin",
                         {"write plugin: NAME; " + known_plugins(kind)});
    return spec;
  }
  const std::optional<std::string> name = word(plugin->value, "'plugin' in " + path);
  if (!name) return spec;
  spec.plugin = *name;
  spec.origin = diagnostics_.origin(plugin->value.at);
  record(join(path, "plugin"), *name, plugin->value);
  spec.library = library_of(map, path);
  static const Schema none;
  const bool chosen_later = kind == Kind::strategy && spec.plugin == kAutoStrategy;
  const Schema* options =
      chosen_later ? &none : schema(kind, spec.plugin, spec.library, plugin->value.at);
  if (!options) {
    unknown_plugin(plugin->value, kind, shown_word(plugin->value));
    return spec;
  }
  spec.options =
      values(&map, *options,
             {path, core_keys(kind), join(kind_name(kind), spec.plugin), kind, spec.plugin, part});
  return spec;
}

ComponentSpec Checker::component_at(const std::string& path, Kind kind) {
  const std::vector<const Node*> maps = components_at(path, kind);
  if (maps.size() == 1) return component(*maps[0], kind, path, path);
  ComponentSpec none;
  none.kind = kind;
  return none;
}

std::vector<const Node*> Checker::components_at(const std::string& path, Kind kind) {
  read_.insert(kind);
  const Node* node = find_path(root_, path);
  const Slot* slot = slot_at(path);
  std::vector<const Node*> maps;
  if (!node || node->is_null() || (node->is_list() && slot->list && node->items.empty())) {
    if (!slot->optional && !is_misspelled(path))
      diagnostics_.error(
          node ? node->at : position_of(find_path(root_, path.substr(0, path.find('.')))), 1,
          path + " is not set", {"write " + path + ": NAME; " + known_plugins(kind)});
    return maps;
  }
  if (node->is_map()) return {node};
  const std::string expected =
      slot->list ? " must be a component or a list of components" : " must be a single component";
  if (!node->is_list() || !slot->list) {
    diagnostics_.error(*node, path + expected);
    return {};
  }
  for (const Node& item : node->items)
    if (item.is_map())
      maps.push_back(&item);
    else
      diagnostics_.error(item, path + expected);
  return maps;
}

}  // namespace dsv3::config
