// Expresses the checker's rules as a JSON schema, as far as JSON Schema allows. Only `dsv3-run
// --check` also checks conditions between options, the assignment of layers to components, and
// values from other files.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <dsv3/runtime/json_schema.h>
#include <dsv3/sdk/error.h>

#include "config/check.h"
#include "config/layers.h"
#include "config/schemas.h"
#include "config/values.h"

namespace dsv3 {
namespace {

using config::Slot;
using Names = std::vector<std::string>;

// ${env:NAME} and ${a.b} may replace any value.
Json reference() {
  return {{"type", "string"}, {"pattern", R"(\$\{)"}};
}

Json one_of_words(const Names& words) {
  return {{"type", "string"}, {"enum", words}};
}

Json or_reference(Json schema) {
  return {{"anyOf", {std::move(schema), reference()}}};
}

// A string, or a number or boolean read as a string, as in `name: 2024`.
Json text() {
  return {{"type", {"string", "number", "boolean"}}};
}

Json scalar_schema(OptionType type, const OptionSpec& spec) {
  if (type == OptionType::string && spec.choices.empty()) return text();
  Json schema = type == OptionType::string ? one_of_words(spec.choices)
                                           : Json{{"type", config::type_name(type)}};
  if (spec.min) schema["minimum"] = *spec.min;
  if (spec.max) schema["maximum"] = *spec.max;
  schema = or_reference(std::move(schema));
  Names words;
  for (const auto& word : spec.words) words.push_back(word.first);
  if (!spec.unset_word.empty()) words.push_back(spec.unset_word);
  if (!words.empty()) schema["anyOf"].push_back(one_of_words(words));
  return schema;
}

Json value_schema(const OptionSpec& spec) {
  const OptionType element = config::element_type(spec.type);
  Json schema = scalar_schema(element, spec);
  return element == spec.type ? schema : Json{{"type", "array"}, {"items", schema}};
}

Json default_json(const OptionSpec& spec) {
  if (std::string word = config::word_of(spec, spec.default_value); !word.empty()) return word;
  return std::visit(
      [](const auto& value) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::monostate>)
          return nullptr;
        else
          return value;
      },
      spec.default_value);
}

Json option_schema(const OptionSpec& spec) {
  Json schema = value_schema(spec);
  schema["description"] = config::doc_text(spec);
  const Json value = default_json(spec);
  if (!spec.required && !value.is_null()) schema["default"] = value;
  return schema;
}

Json properties_of(const Schema& schema) {
  Json properties = Json::object();
  for (const OptionSpec& spec : schema.options) properties[spec.key] = option_schema(spec);
  return properties;
}

Json to(const std::string& definition) {
  return {{"$ref", "#/definitions/" + definition}};
}

// The schema of the property at a dotted path in `schema`. An empty path returns `schema` itself.
Json& property_at(Json& schema, const std::string& path) {
  if (path.empty()) return schema;
  const auto [section, key] = config::split_last(path);
  return property_at(schema, section)["properties"][key];
}

// Keys in a component's map that the core itself reads.
Json core_property(const std::string& key) {
  if (key == "plugin") return Json::object();  // see plugin_name
  if (key == "tokenizer") return to("tokenizer");
  if (key == "timeout") return option_schema(*schema_of<config::StrategyOptions>().find(key));
  Json schema = text();
  if (key == "layers") {
    schema = {{"anyOf",
               {{{"type", "integer"}, {"minimum", 0}},
                {{"type", "string"}, {"pattern", R"(^[0-9]+(-[0-9]*)?$)"}},
                reference()}}};
    schema["description"] =
        "layers that use this component, numbered from 0: a layer such as 3, a range such as 0-1, "
        "or an open-ended range such as 2- (layer 2 to the last)";
  } else if (key == "role") {
    const Json role = or_reference(one_of_words(config::role_words()));
    schema = {
        {"anyOf",
         {role, {{"type", "array"}, {"items", role}, {"minItems", 1}, {"uniqueItems", true}}}}};
    schema["description"] =
        "roles of the group's parameters; a parameter belongs to the first matching group";
  } else {
    static const std::map<std::string, std::string> meanings{
        {"match", "regular expression for the full names of the group's parameters"},
        {"name", "group name in metrics; default: derived from plugin and roles"},
        {"library", "plugin library to use instead of the one listed in the registries"}};
    if (const auto found = meanings.find(key); found != meanings.end())
      schema["description"] = found->second;
  }
  return schema;
}

Json component_properties(Kind kind, Json options) {
  for (const std::string& key : config::core_keys(kind)) options[key] = core_property(key);
  return options;
}

// A name that is a plugin, an alias, or both: `optimizer: muon` refers to an alias, `plugin: muon`
// to a plugin.
struct Named {
  std::string name, summary = "short form";
  const Schema* schema = nullptr;  // null = unknown, or its library cannot be loaded
  bool is_plugin = false;
  bool is_list = false;  // an alias for several components

  // Whether the name may be the value of `plugin:`.
  bool is_component() const { return is_plugin || !is_list; }
};

class Writer {
 public:
  Writer(Plugins& plugins, bool partial) : plugins_(plugins), partial_(partial) {}

  JsonSchema write() {
    out_.schema = {{"$schema", "http://json-schema.org/draft-07/schema#"},
                   {"title", "dsv3 experiment"},
                   {"type", "object"},
                   {"additionalProperties", false},
                   {"definitions", Json::object()}};
    for (const Slot& slot : config::slots()) add_slot(slot);
    add_sections();
    add_slots_to_sections();
    add_conventions();
    add_files();
    if (!partial_) add_completeness();
    return std::move(out_);
  }

 private:
  Json& definition(const std::string& name) { return out_.schema["definitions"][name]; }

  // Returns a plugin's schema. If the plugin cannot be loaded, adds it to the skipped plugins and
  // returns null. Also returns null if the plugin is unknown.
  const Schema* schema_of_plugin(Kind kind, const std::string& name) {
    try {
      const Registration* found = plugins_.find_if_known(kind, name);
      return found ? found->schema.get() : nullptr;
    } catch (const Error& error) {
      out_.skipped.push_back(std::string(kind_name(kind)) + "/" + name + ": " + error.what());
      return nullptr;
    }
  }

  Named look_up(Kind kind, const std::string& name) {
    Named found{name};
    if (const PluginEntry* entry = plugins_.find_entry(kind, name)) {
      found.summary = entry->summary;
      found.schema = schema_of_plugin(kind, name);
      found.is_plugin = true;
    }
    if (const Alias* alias = plugins_.find_alias(kind, name)) {
      config::Diagnostics diagnostics;
      const auto tree = parse(diagnostics, diagnostics.add_source(name, alias->yaml, false));
      found.is_list = tree && tree->is_list();
      const config::Entry* plugin = tree ? tree->find("plugin") : nullptr;
      if (plugin && !found.is_plugin) found.schema = schema_of_plugin(kind, plugin->value.text);
    }
    return found;
  }

  const std::vector<Named>& named(Kind kind) {
    const auto [known, added] = named_.try_emplace(kind);
    if (added)
      for (const std::string& name : plugins_.names(kind))
        known->second.push_back(look_up(kind, name));
    return known->second;
  }

  // The short form `kind: NAME`. In a list, a name must stand for a single component.
  Json short_form(Kind kind, bool in_list) {
    Names words;
    for (const Named& component : named(kind))
      if (!in_list || !component.is_list) words.push_back(component.name);
    Json schema = or_reference(one_of_words(words));
    schema["description"] = "a plugin with its defaults, or a short form";
    return schema;
  }

  Json plugin_name(Kind kind) {
    Json choices = Json::array();
    for (const Named& component : named(kind))
      if (component.is_component())
        choices.push_back({{"const", component.name}, {"description", component.summary}});
    if (kind == Kind::strategy)
      choices.push_back(
          {{"const", kAutoStrategy}, {"description", "the first strategy that fits in memory"}});
    choices.push_back(reference());
    return {{"description", "the component's name"}, {"anyOf", choices}};
  }

  // Options for a component whose plugin is set in a base file. The schema cannot determine which
  // plugin that is, so it allows the options of every plugin of the kind.
  Json inherited_options(Kind kind) {
    std::map<std::string, std::set<Json>> meanings;
    bool complete = true;
    for (const Named& component : named(kind)) {
      if (!component.is_component()) continue;
      complete &= component.schema != nullptr;
      if (component.schema)
        for (const OptionSpec& spec : component.schema->options)
          meanings[spec.key].insert(value_schema(spec));
    }
    Json options = Json::object();
    for (const auto& [key, schemas] : meanings)
      options[key] = {{"anyOf", Json(std::vector<Json>(schemas.begin(), schemas.end()))}};
    return {{"properties", component_properties(kind, options)},
            {"additionalProperties", !complete}};
  }

  // {plugin: NAME, ...}: the name determines the options.
  void add_component(Kind kind) {
    const Json no_library = {{"not", {{"required", {"library"}}}}};
    Json rules = Json::array();
    for (const Named& component : named(kind)) {
      if (!component.schema) continue;
      const std::string options = std::string(kind_name(kind)) + "." + component.name;
      definition(options) = {
          {"description", component.summary},
          {"properties", component_properties(kind, properties_of(*component.schema))},
          {"additionalProperties", false}};
      Json condition = no_library;
      condition["properties"] = {{"plugin", {{"const", component.name}}}};
      condition["required"] = {"plugin"};
      rules.push_back({{"if", condition}, {"then", to(options)}});
    }
    rules.push_back(
        {{"if", {{"not", {{"anyOf", {{{"required", {"plugin"}}}, {{"required", {"library"}}}}}}}}},
         {"then", inherited_options(kind)}});
    // If `library` is set, `plugin` may be any name.
    rules.push_back(
        {{"if", no_library}, {"then", {{"properties", {{"plugin", plugin_name(kind)}}}}}});
    definition(std::string(kind_name(kind)) + ".component") = {
        {"type", "object"},
        {"properties", component_properties(kind, Json::object())},
        {"allOf", rules}};
  }

  // Adds the schema for the value at a slot's path. Uses if-then instead of anyOf, so that editors
  // report the errors inside the value.
  void add_slot(const Slot& slot) {
    add_component(slot.kind);
    const std::string kind = kind_name(slot.kind);
    const Json component = to(kind + ".component");
    Json types = {"string", "object", "null"};
    Json rules = Json::array();
    rules.push_back({{"if", {{"type", "string"}}}, {"then", short_form(slot.kind, false)}});
    if (slot.list) {
      types.push_back("array");
      const Json item = {{"type", {"string", "object"}},
                         {"if", {{"type", "string"}}},
                         {"then", short_form(slot.kind, true)},
                         {"else", component}};
      rules.push_back({{"if", {{"type", "array"}}}, {"then", {{"items", item}}}});
      // {0: {...}} changes single elements of a list in a file listed in `extends`.
      const Json indices = {{"minProperties", 1}, {"propertyNames", {{"pattern", "^[0-9]+$"}}}};
      rules.push_back(
          {{"if", {{"type", "object"}}},
           {"then",
            {{"if", indices}, {"then", {{"additionalProperties", item}}}, {"else", component}}}});
    } else {
      rules.push_back({{"if", {{"type", "object"}}}, {"then", component}});
    }
    definition(kind) = {{"type", types}, {"allOf", rules}};
  }

  void add_sections() {
    for (const auto& [path, schema] : core_sections()) {
      Json& section = property_at(out_.schema, path);
      if (!path.empty()) {
        section["type"] = {"object", "null"};
        section["additionalProperties"] = false;
      }
      section["properties"].update(properties_of(schema));
    }
    Json& top = out_.schema["properties"];
    // Require a valid run name, with the same rule as TopOptions.
    top["name"]["anyOf"] = {
        {{"type", "string"}, {"pattern", "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"}},
        {{"type", {"number", "boolean"}}},
        reference()};
    top["name"].erase("type");
    top["name"].erase("default");  // the file's name
    top["train"]["not"] = {{"required", {"steps", "tokens"}}};
  }

  // Convention presets may set options of sections and of any plugin.
  void add_conventions() {
    Json properties = Json::object();
    const auto add = [&](const std::string& prefix, const Schema& schema) {
      for (const OptionSpec& spec : schema.options)
        if (spec.convention) properties[config::join(prefix, spec.key)] = option_schema(spec);
    };
    for (const auto& [path, schema] : core_sections()) add(path, schema);
    for (const Slot& slot : config::slots())
      for (const Named& component : named(slot.kind))
        if (component.schema && component.is_plugin)
          add(config::join(kind_name(slot.kind), component.name), *component.schema);
    out_.schema["properties"]["conventions"] = {
        {"description",
         "defaults for options that differ between implementations of the same architecture"},
        {"type", {"object", "null"}},
        {"properties", properties},
        {"additionalProperties", false}};
  }

  void add_slots_to_sections() {
    for (const Slot& slot : config::slots())
      if (!config::slot_at(config::split_last(slot.path).first))  // otherwise see core_property
        property_at(out_.schema, std::string(slot.path)) = to(kind_name(slot.kind));
  }

  void add_files() {
    Json& top = out_.schema["properties"];
    top["dsv3"] = {{"enum", {1, "1"}}, {"description", "version of the experiment format"}};
    top["extends"] = {
        {"description", "files that this file extends; paths are relative to its folder"},
        {"anyOf", {text(), {{"type", "array"}, {"items", text()}}}}};
  }

  // Keys that are required in a file without `extends`.
  void add_completeness() {
    out_.schema["required"] = {"dsv3"};
    Json whole = Json::object();
    const auto require = [](Json& map, const std::string& key) { map["required"].push_back(key); };
    for (const Slot& slot : config::slots()) {
      const auto [section, key] = config::split_last(slot.path);
      if (!slot.optional) require(property_at(whole, section), key);
      property_at(whole, std::string(slot.path)).update(complete_slot(slot));
    }
    require(whole, "model");
    require(whole, "train");
    whole["properties"]["model"]["type"] = "object";
    whole["properties"]["train"] = {
        {"type", "object"}, {"anyOf", {{{"required", {"steps"}}}, {{"required", {"tokens"}}}}}};
    out_.schema["if"] = {{"not", {{"required", {"extends"}}}}};
    out_.schema["then"] = whole;
  }

  // Requires each component to set its plugin and the options that the plugin requires.
  Json complete_slot(const Slot& slot) {
    const std::string name = std::string(kind_name(slot.kind)) + ".complete";
    Json rules = Json::array();
    rules.push_back({{"required", {"plugin"}}});
    for (const Named& component : named(slot.kind)) {
      Names required;
      if (component.schema)
        for (const OptionSpec& spec : component.schema->options)
          if (spec.required) required.push_back(spec.key);
      if (required.empty() || !component.is_plugin) continue;
      rules.push_back({{"if", {{"properties", {{"plugin", {{"const", component.name}}}}}}},
                       {"then", {{"required", required}}}});
    }
    // A component may also be a string, to which these rules do not apply.
    definition(name) = {{"if", {{"type", "object"}}}, {"then", {{"allOf", rules}}}};
    const Json rule = to(name);
    Json schema{{"allOf", Json::array({rule})}};
    if (slot.list) {
      schema["items"] = rule;
      schema["minItems"] = slot.optional ? 0 : 1;
    }
    if (!slot.optional) schema["not"] = {{"type", "null"}};
    return schema;
  }

  Plugins& plugins_;
  bool partial_;
  std::map<Kind, std::vector<Named>> named_;
  JsonSchema out_;
};

}  // namespace

JsonSchema experiment_schema(Plugins& plugins, bool partial) {
  return Writer(plugins, partial).write();
}

}  // namespace dsv3
