#include "format/description.h"

#include <algorithm>
#include <cctype>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/prefix.h>
#include <dsv3/support/fs.h>

#include "config/emit.h"
#include "config/node.h"
#include "config/values.h"

namespace dsv3 {
namespace {

using config::Node;

/// With the defaults of the options that the experiment does not set.
ComponentDescription describe_component(const ComponentSpec& spec, Plugins& plugins) {
  ComponentDescription described{spec.plugin, spec.options};
  for (const OptionSpec& option : plugins.find(spec).schema->options)
    described.options.emplace(option.key, option.default_value);
  return described;
}

std::vector<ComponentDescription> describe_layers(const std::vector<LayerRange>& ranges,
                                                  int64_t layers, Plugins& plugins) {
  std::vector<ComponentDescription> described(static_cast<size_t>(layers));
  for (const LayerRange& range : ranges) {
    const ComponentDescription one = describe_component(range.component, plugins);
    for (int64_t layer = range.first; layer <= range.last; ++layer)
      described.at(static_cast<size_t>(layer)) = one;
  }
  return described;
}

void add(Node& map, const std::string& key, const OptionValue& value) {
  map.add(key, {}, config::value_node(OptionSpec{}, value));
}

Node section(std::initializer_list<std::pair<const char*, OptionValue>> values) {
  Node map = config::make_map({});
  for (const auto& [key, value] : values) add(map, key, value);
  return map;
}

void add_component(Node& map, const ComponentDescription& component) {
  add(map, "plugin", component.plugin);
  for (const auto& [key, value] : component.options) add(map, key, value);
}

Node position_node(const ComponentDescription& position) {
  Node map = config::make_map({});
  add_component(map, position);
  return map;
}

/// Equal neighbours become one entry `layers: first-last`.
Node layers_node(const std::vector<ComponentDescription>& layers) {
  Node list;
  list.type = Node::Type::list;
  for (size_t first = 0; first < layers.size();) {
    size_t end = first + 1;
    while (end < layers.size() && layers[end] == layers[first]) ++end;
    Node item = config::make_map({});
    const std::string from = std::to_string(first), to = std::to_string(end - 1);
    add(item, "layers", from == to ? from : from + "-" + to);
    add_component(item, layers[first]);
    list.items.push_back(std::move(item));
    first = end;
  }
  return list;
}

/// What an experiment may be called.
std::string name_from(const std::string& text) {
  std::string name;
  for (const char c : text.substr(0, 100)) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.';
    name += plain ? c : '_';
  }
  if (name.empty() || name[0] == '.') name = "model" + name;
  return name;
}

/// "<kind>.<plugin>.<option>", of some layers with " (layers 2-11)" behind it; empty parts when it
/// is another key.
struct ConventionKey {
  std::string kind, plugin, option;
  size_t first_layer = 0, last_layer = SIZE_MAX;
  explicit ConventionKey(const std::string& key) {
    const size_t first = key.find('.'), second = key.find('.', first + 1);
    if (first == std::string::npos || second == std::string::npos) return;
    kind = key.substr(0, first);
    plugin = key.substr(first + 1, second - first - 1);
    const size_t end = key.find(" (layers ");
    option = key.substr(second + 1, end == std::string::npos ? end : end - second - 1);
    if (end == std::string::npos) return;
    const std::string layers = key.substr(end + 9);  // "2-11)" or "3)"
    first_layer = last_layer = std::stoul(layers);
    if (const size_t dash = layers.find('-'); dash != std::string::npos)
      last_layer = std::stoul(layers.substr(dash + 1));
  }
};

/// The components that a convention's key is about.
std::vector<ComponentDescription*> meant_by(const ConventionKey& key, ModelDescription& model) {
  std::vector<ComponentDescription*> found;
  const auto add = [&](const char* kind, ComponentDescription& component) {
    if (key.kind == kind && key.plugin == component.plugin) found.push_back(&component);
  };
  const size_t end = std::min(key.last_layer, size_t(model.layers) - 1) + 1;
  for (size_t layer = key.first_layer; layer < end; ++layer) {
    add("attention", model.attention.at(layer));
    add("feed_forward", model.feed_forward.at(layer));
  }
  add("position", model.position);
  return found;
}

/// A convention's text as a value of its option.
OptionValue typed(const std::string& text, OptionType type) {
  switch (type) {
    case OptionType::boolean:
      return text == "true";
    case OptionType::integer:
      return static_cast<int64_t>(std::stoll(text));
    case OptionType::number:
      return std::stod(text);
    default:
      return text;
  }
}

void replace_mark(std::string& text, const std::string& mark, const std::string& value) {
  const size_t at = text.find(mark);
  if (at == std::string::npos) throw Error("the template of imported models has no " + mark);
  text.replace(at, mark.size(), value);
}

}  // namespace

ModelDescription describe_model(const Experiment& experiment, int64_t vocab, Plugins& plugins) {
  ModelDescription model;
  model.hidden = experiment.model.hidden;
  model.layers = experiment.model.layers;
  model.vocab = vocab;
  model.tied_head = experiment.model.tied_head;
  model.norm_eps = experiment.norm.eps;
  model.norm_place = experiment.norm.place;
  model.init_std = experiment.init.std;
  model.mtp_depth = experiment.mtp.depth;
  model.mtp_concat = experiment.mtp.concat;
  model.sequence = experiment.train.sequence;
  model.attention = describe_layers(experiment.attention, model.layers, plugins);
  model.feed_forward = describe_layers(experiment.feed_forward, model.layers, plugins);
  model.position = describe_component(experiment.position, plugins);
  const Model built(experiment, vocab, plugins, at::kMeta);
  for (const Parameter& parameter : built.store().parameters())
    model.shapes[parameter.name] = parameter.tensor.sizes().vec();
  for (const Buffer& buffer : built.store().buffers())
    model.shapes[buffer.name] = buffer.tensor.sizes().vec();
  return model;
}

std::string model_yaml(const ModelDescription& model) {
  Node node = section({{"hidden", model.hidden},
                       {"layers", model.layers},
                       {"vocab", model.vocab},
                       {"tied_head", model.tied_head}});
  node.add("norm", {}, section({{"eps", model.norm_eps}, {"place", model.norm_place}}));
  node.add("init", {}, section({{"std", model.init_std}}));
  node.add("mtp", {}, section({{"depth", model.mtp_depth}, {"concat", model.mtp_concat}}));
  node.add("attention", {}, layers_node(model.attention));
  node.add("position", {}, position_node(model.position));
  node.add("feed_forward", {}, layers_node(model.feed_forward));
  Node top = config::make_map({});
  top.add("model", {}, std::move(node));
  return config::emit(top);
}

bool set_by_description(const ModelDescription& model, const std::string& key) {
  if (key == "model.norm.place" || key == "model.mtp.concat") return true;
  ModelDescription copy = model;
  const ConventionKey parts(key);
  for (const ComponentDescription* component : meant_by(parts, copy))
    if (component->options.contains(parts.option)) return true;
  return false;
}

void set_convention(ModelDescription& model, const std::string& key, const std::string& value,
                    Plugins& plugins) {
  const ConventionKey parts(key);
  for (ComponentDescription* component : meant_by(parts, model)) {
    ComponentSpec spec;
    spec.kind = kind_from_name(parts.kind);
    spec.plugin = parts.plugin;
    if (const OptionSpec* option = plugins.find(spec).schema->find(parts.option))
      component->options.emplace(parts.option, typed(value, option->type));
  }
}

std::string imported_experiment(const ModelDescription& model, const std::string& name,
                                const std::string& tokenizer) {
  std::string rest = fs::read(own_prefix() / "share/dsv3/templates/imported.yaml");
  replace_mark(rest, "@SEQUENCE@", std::to_string(model.sequence));
  replace_mark(rest, "@TOKENIZER@", tokenizer);
  return "dsv3: 1\nname: " + name_from(name) + "\n" + model_yaml(model) + rest;
}

}  // namespace dsv3
