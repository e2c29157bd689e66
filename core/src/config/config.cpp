// Puts an Experiment together from the checked sections.
#include <algorithm>
#include <utility>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/config.h>

#include "config/check.h"
#include "config/components.h"
#include "config/emit.h"
#include "config/layers.h"
#include "config/parse.h"
#include "config/schemas.h"
#include "config/slots.h"

namespace dsv3 {
namespace {

using config::Checker;
using config::Node;
using config::Scope;

// All that comes out of reading an experiment; the tree's origins live in the diagnostics.
struct Loaded {
  config::Diagnostics diagnostics;
  Experiment experiment;
  Node resolved;
};

std::string name_from(const std::filesystem::path& file) {
  std::string name = file.stem().string();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  return name;
}

// Values below `node`, which stands at `path`.
void collect(const Node& node, const std::string& path, const config::Diagnostics& origins,
             std::vector<ResolvedValue>& out) {
  const bool components = node.is_list() && config::slot_at(path);
  if (node.is_map() && !node.entries.empty()) {
    for (const config::Entry& entry : node.entries)
      collect(entry.value, config::join(path, entry.key), origins, out);
  } else if (components) {
    for (size_t i = 0; i < node.items.size(); ++i)
      collect(node.items[i], node.items.size() == 1 ? path : config::join(path, std::to_string(i)),
              origins, out);
  } else {
    out.push_back({path, config::inline_text(node), origins.origin_text(node.at)});
  }
}

// Reads section `path` into `target` and the resolved tree.
template <class T>
void read_section(Checker& checker, const std::string& path, T& target, Node& out,
                  std::vector<std::string> others = {}) {
  Node section = config::make_map({});
  target = checker.options<T>({path, std::move(others), path}, section);
  const std::string key = path.substr(path.rfind('.') + 1);
  if (!section.entries.empty()) out.add(key, {}, std::move(section));
}

void read_component(Checker& checker, const std::string& path, Kind kind, bool optional,
                    ComponentSpec& target, Node& out) {
  Node component = config::make_map({});
  target = checker.component_at(path, kind, optional, component);
  if (!component.entries.empty())
    out.add(path.substr(path.rfind('.') + 1), {}, std::move(component));
}

void read_model(Checker& checker, Experiment& experiment, Node& out) {
  Node model = config::make_map({});
  experiment.model = checker.options<ModelOptions>(
      {"model", {"norm", "loss", "init", "mtp", "attention", "position", "feed_forward"}, "model"},
      model);
  checker.use_conventions(experiment.model.conventions);  // before any option that is one
  read_section(checker, "model.norm", experiment.norm, model);
  read_section(checker, "model.loss", experiment.loss, model);
  read_section(checker, "model.init", experiment.init, model);
  read_section(checker, "model.mtp", experiment.mtp, model);
  const int64_t layers = experiment.model.layers;
  Node attention, feed_forward;
  experiment.attention =
      layer_ranges(checker, "model.attention", Kind::attention, layers, attention);
  model.add("attention", {}, std::move(attention));
  read_component(checker, "model.position", Kind::position, false, experiment.position, model);
  experiment.feed_forward =
      layer_ranges(checker, "model.feed_forward", Kind::feed_forward, layers, feed_forward);
  model.add("feed_forward", {}, std::move(feed_forward));
  out.add("model", {}, std::move(model));
}

void read_data(Checker& checker, Experiment& experiment, Node& out) {
  Node data = config::make_map({});
  experiment.data = checker.component_at("data", Kind::data, false, data);
  read_component(checker, "data.tokenizer", Kind::tokenizer, true, experiment.tokenizer, data);
  out.add("data", {}, std::move(data));
}

void check_length(Checker& checker, const TrainOptions& train) {
  if ((train.steps == 0) != (train.tokens == 0)) return;
  const Node* section = checker.section("train");
  const config::Entry* steps = section ? section->find("steps") : nullptr;
  const config::Entry* tokens = section ? section->find("tokens") : nullptr;
  if (steps && tokens)
    checker.diagnostics().error(*tokens, "train has both 'steps' and 'tokens'; keep one",
                                {"'steps' is set at " + checker.diagnostics().place(steps->at)});
  else if (!steps && !tokens)
    checker.diagnostics().error(checker.position_of(section), 1,
                                "train needs 'steps' or 'tokens': how long the run is");
}

void fill(Checker& checker, Experiment& experiment, Node& out) {
  Node version = config::make_scalar("1", {});
  out.add("dsv3", {}, std::move(version));
  const Scope top_scope{"",
                        {"model", "optimizer", "schedule", "strategy", "data", "train",
                         "validation", "samples", "checkpoint", "tracker", "hub", "log"},
                        ""};
  const auto top = checker.options<config::TopOptions>(top_scope, out);
  experiment.name = top.name;
  experiment.output = top.output;
  read_model(checker, experiment, out);
  Node optimizer;
  experiment.optimizer = optimizer_groups(checker, optimizer);
  out.add("optimizer", {}, std::move(optimizer));
  read_component(checker, "schedule", Kind::schedule, false, experiment.schedule, out);
  read_component(checker, "strategy", Kind::strategy, false, experiment.strategy, out);
  read_data(checker, experiment, out);
  read_section(checker, "train", experiment.train, out);
  check_length(checker, experiment.train);
  read_section(checker, "validation", experiment.validation, out);
  read_section(checker, "samples", experiment.samples, out);
  read_section(checker, "checkpoint", experiment.checkpoint, out);
  Node tracker;
  experiment.tracker = trackers(checker, tracker);
  out.add("tracker", {}, std::move(tracker));
  config::HubOptions hub;
  config::LogOptions log;
  read_section(checker, "hub", hub, out);
  read_section(checker, "log", log, out);
  experiment.hub_endpoint = hub.endpoint;
  experiment.log_level = log.level;
  experiment.conventions = checker.conventions();
}

Loaded load(const ExperimentRequest& request, Catalog& catalog) {
  Loaded loaded;
  loaded.experiment.file = request.file.string();
  std::vector<std::string>& notes = loaded.experiment.notes;
  Node tree = config::LayerReader(loaded.diagnostics, catalog, notes).read(request);
  if (!std::as_const(tree).find("name"))
    tree.add("name", {}, config::make_scalar(name_from(request.file), {}));
  loaded.resolved = config::make_map({});
  Checker checker(tree, loaded.diagnostics, catalog, notes);
  fill(checker, loaded.experiment, loaded.resolved);
  loaded.diagnostics.throw_if_any();
  return loaded;
}

}  // namespace

MachineConfig read_machine_config(const std::filesystem::path& file) {
  MachineConfig machine;
  if (file.empty()) return machine;
  machine.file = file.string();
  config::Diagnostics diagnostics;
  const Node tree = config::read_yaml_file(diagnostics, file, 1);
  if (const config::Entry* paths = tree.find("plugin_paths")) {
    config::Resolver resolver(tree, diagnostics);
    OptionSpec spec;
    spec.key = "plugin_paths";
    spec.doc = "folders of registries";
    spec.type = OptionType::strings;
    if (auto read = convert(spec, paths->value, "'plugin_paths'", resolver, diagnostics))
      machine.plugin_paths = std::get<std::vector<std::string>>(read->value);
  }
  diagnostics.throw_if_any();
  for (std::string& path : machine.plugin_paths)
    path = (file.parent_path() / path).lexically_normal().string();
  return machine;
}

Experiment load_experiment(const ExperimentRequest& request, Catalog& catalog) {
  Loaded loaded = load(request, catalog);
  loaded.experiment.resolved = config::emit(loaded.resolved);
  return std::move(loaded.experiment);
}

std::string print_with_origins(const ExperimentRequest& request, Catalog& catalog) {
  const Loaded loaded = load(request, catalog);
  return config::emit(loaded.resolved, &loaded.diagnostics);
}

std::vector<ResolvedValue> resolved_values(const ExperimentRequest& request, Catalog& catalog) {
  const Loaded loaded = load(request, catalog);
  std::vector<ResolvedValue> values;
  collect(loaded.resolved, "", loaded.diagnostics, values);
  return values;
}

std::vector<ResolvedValue> resolved_values(const std::string& resolved) {
  config::Diagnostics diagnostics;
  const int source = diagnostics.add_source("resolved experiment", resolved, false);
  const std::optional<Node> tree = config::parse(diagnostics, source, 0);
  diagnostics.throw_if_any();
  std::vector<ResolvedValue> values;
  if (tree) collect(*tree, "", diagnostics, values);
  return values;
}

}  // namespace dsv3
