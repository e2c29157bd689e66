// Says in JSON schema what the checker checks, as far as that language goes: conditions between
// options, positions of layers and what other files set stay with `dsv3-run --check`.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <dsv3/runtime/json_schema.h>
#include <dsv3/sdk/error.h>

#include "config/components.h"
#include "config/parse.h"
#include "config/schemas.h"
#include "config/slots.h"
#include "config/values.h"

namespace dsv3 {
namespace {

using config::Slot;
using Names = std::vector<std::string>;

// ${env:NAME} and ${a.b} may stand for any value.
Json reference() {
  return {{"type", "string"}, {"pattern", R"(\$\{)"}};
}

Json one_of_words(const Names& words) {
  return {{"type", "string"}, {"enum", words}};
}

Json or_reference(Json schema) {
  return {{"anyOf", {std::move(schema), reference()}}};
}

// A word or number that is read as text, as `name: 2024` is.
Json text() {
  return {{"type", {"string", "number", "boolean"}}};
}

Json with_range(Json schema, const OptionSpec& spec) {
  if (spec.min) schema["minimum"] = *spec.min;
  if (spec.max) schema["maximum"] = *spec.max;
  return schema;
}

Json scalar_schema(OptionType type, const OptionSpec& spec) {
  switch (type) {
    case OptionType::boolean:
      return or_reference({{"type", "boolean"}});
    case OptionType::integer: {
      Json schema = or_reference(with_range({{"type", "integer"}}, spec));
      Names words;
      for (const auto& word : spec.words) words.push_back(word.first);
      if (!words.empty()) schema["anyOf"].push_back(one_of_words(words));
      return schema;
    }
    case OptionType::number:
      return or_reference(with_range({{"type", "number"}}, spec));
    default:
      return spec.choices.empty() ? text() : or_reference(one_of_words(spec.choices));
  }
}

Json value_schema(const OptionSpec& spec) {
  switch (spec.type) {
    case OptionType::integers:
      return {{"type", "array"}, {"items", scalar_schema(OptionType::integer, spec)}};
    case OptionType::numbers:
      return {{"type", "array"}, {"items", scalar_schema(OptionType::number, spec)}};
    case OptionType::strings:
      return {{"type", "array"}, {"items", scalar_schema(OptionType::string, spec)}};
    default:
      return scalar_schema(spec.type, spec);
  }
}

Json default_json(const OptionSpec& spec) {
  if (const auto* integer = std::get_if<int64_t>(&spec.default_value))
    for (const auto& [word, value] : spec.words)
      if (value == *integer) return word;
  return std::visit([](const auto& value) { return Json(value); }, spec.default_value);
}

Json option_schema(const OptionSpec& spec) {
  Json schema = value_schema(spec);
  schema["description"] = config::doc_text(spec);
  // A default outside the option's own range means "not set".
  if (!spec.required && config::misfit(spec, spec.default_value).empty())
    schema["default"] = default_json(spec);
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

// What the core reads in a component's map besides the plugin's options.
Json core_property(const std::string& key) {
  if (key == "plugin") return Json::object();  // the slot says which
  if (key == "tokenizer") return to("tokenizer");
  Json schema = text();
  if (key == "layers") {
    schema = {{"anyOf",
               {{{"type", "integer"}, {"minimum", 0}},
                {{"type", "string"}, {"pattern", R"(^[0-9]+(-[0-9]*)?$)"}},
                reference()}}};
    schema["description"] = "which layers it is for: 3, 0-1, or 2- up to the last; from 0";
  } else if (key == "role") {
    const Json role = or_reference(one_of_words(config::role_words()));
    schema = {
        {"anyOf",
         {role, {{"type", "array"}, {"items", role}, {"minItems", 1}, {"uniqueItems", true}}}}};
    schema["description"] = "parameters of these roles; the first group that matches owns one";
  } else if (key == "match") {
    schema["description"] = "parameters whose full name this regular expression finds";
  } else if (key == "name") {
    schema["description"] = "the group's name in metrics; made from plugin and roles by default";
  } else if (key == "library") {
    schema["description"] = "the plugin's library, instead of the registries' one";
  }
  return schema;
}

// A component that experiments may name.
struct Named {
  std::string name;
  std::string summary;
  const Schema* schema = nullptr;  // null: its library cannot be loaded, or an alias's is not known
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
    add_files();
    if (!partial_) add_completeness();
    return std::move(out_);
  }

 private:
  Json& definition(const std::string& name) { return out_.schema["definitions"][name]; }

  // A plugin's schema; null = no such plugin, or one that cannot be loaded, which is noted.
  const Schema* schema_of_plugin(Kind kind, const std::string& name) {
    try {
      const Registration* found = plugins_.find_if_known(kind, name);
      return found ? found->schema.get() : nullptr;
    } catch (const Error& error) {
      out_.skipped.push_back(std::string(kind_name(kind)) + "/" + name + ": " + error.what());
      return nullptr;
    }
  }

  // The tree that an alias stands for.
  static std::optional<config::Node> meaning(const Alias& alias) {
    config::Diagnostics diagnostics;
    return parse(diagnostics, diagnostics.add_source(alias.name, alias.yaml, false), 0);
  }

  // Names that may stand behind `plugin:`: plugins, and aliases of one component.
  std::vector<Named> named(Kind kind) {
    std::vector<Named> all;
    for (const std::string& name : plugins_.names(kind)) {
      if (const PluginEntry* entry = plugins_.find_entry(kind, name)) {
        all.push_back({name, entry->summary, schema_of_plugin(kind, name)});
        continue;
      }
      const auto tree = meaning(*plugins_.find_alias(kind, name));
      if (!tree || !tree->is_map()) continue;
      const config::Entry* plugin = tree->find("plugin");
      all.push_back(
          {name, "short form", plugin ? schema_of_plugin(kind, plugin->value.text) : nullptr});
    }
    return all;
  }

  // `kind: NAME`. In a list only what stands for one component fits.
  Json short_form(Kind kind, bool in_list) {
    Names words;
    for (const std::string& name : plugins_.names(kind)) {
      const Alias* alias = plugins_.find_alias(kind, name);
      const auto tree = alias ? meaning(*alias) : std::nullopt;
      if (!in_list || !tree || !tree->is_list()) words.push_back(name);
    }
    Json schema = or_reference(one_of_words(words));
    schema["description"] = "a plugin with its defaults, or a short form";
    return schema;
  }

  Json plugin_name(const std::vector<Named>& all) {
    Json choices = Json::array();
    for (const Named& each : all)
      choices.push_back({{"const", each.name}, {"description", each.summary}});
    choices.push_back(reference());
    return {{"description", "the component's name"}, {"anyOf", choices}};
  }

  // Options of a component whose plugin another file names: any that some plugin of the kind has.
  Json inherited_options(const std::vector<Named>& all, Kind kind) {
    Json properties = Json::object();
    for (const std::string& key : config::core_keys(kind)) properties[key] = core_property(key);
    std::map<std::string, std::set<Json>> meanings;
    for (const Named& each : all)
      if (each.schema)
        for (const OptionSpec& spec : each.schema->options)
          meanings[spec.key].insert(value_schema(spec));
    for (const auto& [key, schemas] : meanings)
      properties[key] = {{"anyOf", Json(std::vector<Json>(schemas.begin(), schemas.end()))}};
    return {{"properties", properties},
            {"additionalProperties", all_loaded(all) ? Json(false) : Json(true)}};
  }

  static bool all_loaded(const std::vector<Named>& all) {
    return std::all_of(all.begin(), all.end(), [](const Named& each) { return each.schema; });
  }

  // {plugin: NAME, ...}: the options follow from the name.
  void add_component(Kind kind) {
    const std::vector<Named> all = named(kind);
    const Json no_library = {{"not", {{"required", {"library"}}}}};
    Json rules = Json::array();
    for (const Named& each : all) {
      if (!each.schema) continue;
      const std::string options = std::string(kind_name(kind)) + "." + each.name;
      Json properties = properties_of(*each.schema);
      for (const std::string& key : config::core_keys(kind)) properties[key] = core_property(key);
      definition(options) = {{"description", each.summary},
                             {"properties", properties},
                             {"additionalProperties", false}};
      Json condition = no_library;
      condition["properties"] = {{"plugin", {{"const", each.name}}}};
      condition["required"] = {"plugin"};
      rules.push_back({{"if", condition}, {"then", to(options)}});
    }
    rules.push_back(
        {{"if", {{"not", {{"anyOf", {{{"required", {"plugin"}}}, {{"required", {"library"}}}}}}}}},
         {"then", inherited_options(all, kind)}});
    // A library of its own may hold any name.
    rules.push_back(
        {{"if", no_library}, {"then", {{"properties", {{"plugin", plugin_name(all)}}}}}});
    Json properties = Json::object();
    for (const std::string& key : config::core_keys(kind)) properties[key] = core_property(key);
    definition(std::string(kind_name(kind)) + ".component") = {
        {"type", "object"}, {"properties", properties}, {"allOf", rules}};
  }

  // What stands in a slot. if-then rather than anyOf: editors then tell what is wrong inside.
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
      // {0: {...}} changes elements of a list that an extended file has.
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

  // The schema of the map at a section's dotted path; "" = the top.
  Json& section_at(const std::string& path) {
    Json* at = &out_.schema;
    for (size_t begin = 0; begin < path.size();) {
      const size_t end = std::min(path.find('.', begin), path.size());
      at = &(*at)["properties"][path.substr(begin, end - begin)];
      begin = end + 1;
    }
    return *at;
  }

  void add_sections() {
    for (const auto& [path, schema] : config::core_sections()) {
      Json& section = section_at(path);
      if (!path.empty()) {
        section["type"] = {"object", "null"};
        section["additionalProperties"] = false;
      }
      section["properties"].update(properties_of(schema));
    }
    Json& top = out_.schema["properties"];
    // The rule of TopOptions, whose check says it in words.
    top["name"]["anyOf"] = {
        {{"type", "string"}, {"pattern", "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"}},
        {{"type", {"number", "boolean"}}},
        reference()};
    top["name"].erase("type");
    top["name"].erase("default");  // the file's name
    top["train"]["not"] = {{"required", {"steps", "tokens"}}};
  }

  void add_slots_to_sections() {
    for (const Slot& slot : config::slots()) {
      const std::string path(slot.path);
      if (slot_inside(path)) continue;  // a component's: core_property
      const size_t dot = path.rfind('.');
      const std::string section = dot == path.npos ? "" : path.substr(0, dot);
      section_at(section)["properties"][path.substr(dot + 1)] = to(kind_name(slot.kind));
    }
  }

  static bool slot_inside(const std::string& path) {
    const size_t dot = path.rfind('.');
    return dot != path.npos && config::slot_at(path.substr(0, dot));
  }

  void add_files() {
    Json& top = out_.schema["properties"];
    top["dsv3"] = {{"enum", {1, "1"}}, {"description", "version of the experiment format"}};
    top["extends"] = {{"description", "files that this one starts from, relative to it"},
                      {"anyOf", {text(), {{"type", "array"}, {"items", text()}}}}};
  }

  // What must be there in a file that extends none.
  void add_completeness() {
    out_.schema["required"] = {"dsv3"};
    Json whole = Json::object();
    const auto require = [](Json& map, const std::string& key) { map["required"].push_back(key); };
    for (const Slot& slot : config::slots()) {
      const std::string path(slot.path);
      Json* at = &whole;
      size_t begin = 0;
      for (size_t dot; (dot = path.find('.', begin)) != path.npos; begin = dot + 1)
        at = &(*at)["properties"][path.substr(begin, dot - begin)];
      const std::string key = path.substr(begin);
      if (!slot.optional) require(*at, key);
      (*at)["properties"][key].update(complete_slot(slot));
    }
    require(whole, "model");
    require(whole, "train");
    whole["properties"]["model"]["type"] = "object";
    whole["properties"]["train"] = {
        {"type", "object"}, {"anyOf", {{{"required", {"steps"}}}, {{"required", {"tokens"}}}}}};
    out_.schema["if"] = {{"not", {{"required", {"extends"}}}}};
    out_.schema["then"] = whole;
  }

  // Each component names its plugin and has what that requires.
  Json complete_slot(const Slot& slot) {
    const std::string name = std::string(kind_name(slot.kind)) + ".complete";
    Json rules = Json::array();
    rules.push_back({{"required", {"plugin"}}});
    for (const Named& each : named(slot.kind)) {
      Names required;
      if (each.schema)
        for (const OptionSpec& spec : each.schema->options)
          if (spec.required) required.push_back(spec.key);
      if (required.empty() || !plugins_.find_entry(slot.kind, each.name)) continue;
      rules.push_back({{"if", {{"properties", {{"plugin", {{"const", each.name}}}}}}},
                       {"then", {{"required", required}}}});
    }
    // Rules for maps pass over words.
    definition(name) = {{"if", {{"type", "object"}}}, {"then", {{"allOf", rules}}}};
    Json rule = to(name);
    Json schema;
    schema["allOf"].push_back(rule);
    if (slot.list) {
      schema["items"] = rule;
      schema["minItems"] = slot.optional ? 0 : 1;
    }
    if (!slot.optional) schema["not"] = {{"type", "null"}};
    return schema;
  }

  Plugins& plugins_;
  bool partial_;
  JsonSchema out_;
};

}  // namespace

JsonSchema experiment_schema(Plugins& plugins, bool partial) {
  return Writer(plugins, partial).write();
}

}  // namespace dsv3
