#include "format/description.h"

#include <charconv>
#include <optional>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/prefix.h>

#include "config/values.h"

namespace dsv3 {
namespace {

/// Describes a component, including the defaults of options that the experiment does not set.
ComponentDescription describe_component(const ComponentSpec& spec, Plugins& plugins) {
  ComponentDescription described{spec.plugin, spec.options};
  for (const OptionSpec& option : plugins.find(spec).schema->options)
    described.options.emplace(option.key, option.default_value);
  return described;
}

std::vector<ComponentDescription> describe_layers(const std::vector<LayerRange>& ranges,
                                                  int64_t layers, Plugins& plugins) {
  std::vector<ComponentDescription> described(static_cast<size_t>(layers));
  for (const LayerRange& range : ranges)
    std::fill_n(described.begin() + range.first, range.last - range.first + 1,
                describe_component(range.component, plugins));
  return described;
}

/// Adds the settings for a component at `path`.
void add_component(std::vector<Setting>& settings, const std::string& path,
                   const ComponentDescription& component) {
  settings.push_back({path + ".plugin", component.plugin, ""});
  for (const auto& [key, value] : component.options)
    if (!std::holds_alternative<std::monostate>(value))
      settings.push_back({path + "." + key, value, ""});
}

/// Adds the settings for the components of all layers. Merges adjacent identical components as
/// `layers: first-last`.
void add_layers(std::vector<Setting>& settings, const std::string& path,
                const std::vector<ComponentDescription>& layers) {
  size_t entry = 0;
  for (size_t first = 0; first < layers.size(); ++entry) {
    size_t end = first + 1;
    while (end < layers.size() && layers[end] == layers[first]) ++end;
    const std::string at = path + "." + std::to_string(entry);
    const std::string from = std::to_string(first), to = std::to_string(end - 1);
    settings.push_back({at + ".layers", from == to ? from : from + "-" + to, ""});
    add_component(settings, at, layers[first]);
    first = end;
  }
}

/// Returns the settings for the `model` section.
std::vector<Setting> model_settings(const ModelDescription& model) {
  std::vector<Setting> settings{
      {"model.hidden", model.hidden, ""},        {"model.layers", model.layers, ""},
      {"model.vocab", model.vocab, ""},          {"model.tied_head", model.tied_head, ""},
      {"model.norm.eps", model.norm_eps, ""},    {"model.norm.place", model.norm_place, ""},
      {"model.init.std", model.init_std, ""},    {"model.mtp.depth", model.mtp_depth, ""},
      {"model.mtp.concat", model.mtp_concat, ""}};
  add_layers(settings, "model.attention", model.attention);
  add_component(settings, "model.position", model.position);
  add_layers(settings, "model.feed_forward", model.feed_forward);
  return settings;
}

/// Converts `text` to a valid experiment name.
std::string experiment_name(const std::string& text) {
  std::string name;
  for (const char c : text.substr(0, 100)) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.';
    name += plain ? c : '_';
  }
  if (name.empty() || name[0] == '.') name = "model" + name;
  return name;
}

/// Returns the components to which the key of a convention applies.
std::vector<ComponentDescription*> components_of(const ConventionKey& key,
                                                 ModelDescription& model) {
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

/// Converts the text of a convention's value to its option's type. Returns nullopt if that is not
/// possible.
std::optional<OptionValue> typed_value(const std::string& text, OptionType type) {
  const auto number = [&]<class T>(T value) -> std::optional<OptionValue> {
    const char* end = text.data() + text.size();
    const auto [last, error] = std::from_chars(text.data(), end, value);
    return error == std::errc() && last == end ? std::optional<OptionValue>(value) : std::nullopt;
  };
  if (type == OptionType::boolean)
    return text == "true" || text == "false" ? std::optional<OptionValue>(text == "true")
                                             : std::nullopt;
  if (type == OptionType::integer) return number(int64_t{0});
  if (type == OptionType::number) return number(0.0);
  return text;
}

/// Returns the option that a convention's key names; null if the model has no such convention.
const OptionSpec* option_of(const std::string& key, ModelDescription& model, Plugins& plugins) {
  for (const auto& [path, schema] : core_sections())
    for (const OptionSpec& option : schema.options)
      if (option.convention && path + "." + option.key == key) return &option;
  const ConventionKey parts(key);
  if (components_of(parts, model).empty()) return nullptr;
  ComponentSpec spec;
  spec.kind = kind_from_name(parts.kind);
  spec.plugin = parts.plugin;
  const OptionSpec* option = plugins.find(spec).schema->find(parts.option);
  return option && option->convention ? option : nullptr;
}

}  // namespace

ConventionKey::ConventionKey(const std::string& key) {
  const size_t first = key.find('.'), second = key.find('.', first + 1);
  if (first == std::string::npos || second == std::string::npos) return;
  kind = key.substr(0, first);
  plugin = key.substr(first + 1, second - first - 1);
  const size_t end = key.find(" (layers ");
  option = key.substr(second + 1, end == std::string::npos ? end : end - second - 1);
  if (end == std::string::npos) return;
  const char* layers = key.c_str() + end + 9;  // "2-11)" or "3)"
  const char* stop = key.c_str() + key.size();
  const char* next = std::from_chars(layers, stop, first_layer).ptr;
  last_layer = first_layer;
  if (*next == '-') std::from_chars(next + 1, stop, last_layer);
}

std::string convention_problem(const std::string& key, const std::string& value,
                               const ModelDescription& model, Plugins& plugins) {
  ModelDescription copy = model;
  const OptionSpec* option = option_of(key, copy, plugins);
  if (!option) return "'" + key + "' is not a convention of this model";
  const auto typed = typed_value(value, option->type);
  const std::string misfit =
      typed ? config::misfit(*option, *typed) : "must be a " + config::type_name(option->type);
  return misfit.empty() ? "" : "convention '" + key + "' " + misfit + ", not '" + value + "'";
}

std::set<std::string> add_shapes(ModelDescription& model, const Experiment& experiment,
                                 Plugins& plugins) {
  std::set<std::string> buffers;
  const Model meta(experiment, model.vocab, factory_of(experiment, plugins), at::kMeta);
  for (const Parameter& parameter : meta.store().parameters())
    model.shapes[parameter.name] = parameter.tensor.sizes().vec();
  for (const Buffer& buffer : meta.store().buffers()) {
    model.shapes[buffer.name] = buffer.tensor.sizes().vec();
    buffers.insert(buffer.name);
  }
  return buffers;
}

ModelDescription describe_model(const Experiment& experiment, int64_t vocab, Plugins& plugins) {
  const int64_t layers = experiment.model.layers;
  ModelDescription model{.hidden = experiment.model.hidden,
                         .layers = layers,
                         .vocab = vocab,
                         .tied_head = experiment.model.tied_head,
                         .norm_eps = experiment.norm.eps,
                         .norm_place = experiment.norm.place,
                         .init_std = experiment.init.std,
                         .mtp_depth = experiment.mtp.depth,
                         .mtp_concat = experiment.mtp.concat,
                         .sequence = experiment.train.sequence,
                         .attention = describe_layers(experiment.attention, layers, plugins),
                         .feed_forward = describe_layers(experiment.feed_forward, layers, plugins),
                         .position = describe_component(experiment.position, plugins),
                         .shapes = {}};
  add_shapes(model, experiment, plugins);
  return model;
}

bool set_by_description(const ModelDescription& model, const std::string& key) {
  if (key == "model.norm.place" || key == "model.mtp.concat") return true;
  ModelDescription copy = model;
  const ConventionKey parts(key);
  for (const ComponentDescription* component : components_of(parts, copy))
    if (component->options.contains(parts.option)) return true;
  return false;
}

void set_convention(ModelDescription& model, const std::string& key, const std::string& value,
                    Plugins& plugins) {
  const ConventionKey parts(key);
  for (ComponentDescription* component : components_of(parts, model)) {
    ComponentSpec spec;
    spec.kind = kind_from_name(parts.kind);
    spec.plugin = parts.plugin;
    if (const OptionSpec* option = plugins.find(spec).schema->find(parts.option))
      component->options.emplace(parts.option, *typed_value(value, option->type));
  }
}

ExperimentRequest imported_experiment(const ModelDescription& model, const std::string& name,
                                      const std::filesystem::path& tokenizer) {
  ExperimentRequest request;
  request.file = own_prefix() / "share/dsv3/templates/imported.yaml";
  request.settings = model_settings(model);
  request.settings.push_back({"name", experiment_name(name), ""});
  request.settings.push_back({"train.sequence", model.sequence, ""});
  if (tokenizer.empty())
    request.settings.push_back({"data.tokenizer", std::monostate(), ""});
  else
    request.settings.push_back({"data.tokenizer.file", tokenizer.string(), ""});
  for (Setting& setting : request.settings) setting.label = "config.json of " + name;
  return request;
}

}  // namespace dsv3
