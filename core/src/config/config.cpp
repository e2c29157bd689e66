// Builds an Experiment from the checked sections.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include <dsv3/runtime/config.h>

#include "config/check.h"
#include "config/layers.h"
#include "support/checked_math.h"

namespace dsv3 {
namespace {

using config::Checker;
using config::Node;

std::string name_from(const std::filesystem::path& file) {
  std::string name = file.stem().string();
  std::ranges::replace_if(
      name, [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '-'; }, '_');
  return name;
}

// Rejects `model.conventions`, a key from older versions that selected a set of conventions.
void check_old_conventions(Checker& checker) {
  const Node* chosen = checker.node_at("model.conventions");
  if (!chosen) return;
  const bool is_default = chosen->text == "deepseek" || !chosen->is_scalar();
  checker.diagnostics().error(
      *chosen, "'model.conventions' is no longer supported",
      {is_default ? "remove it: the defaults are DeepSeek's conventions"
                  : "extend the conventions file instead, for example extends: "
                    "conventions/" +
                        chosen->text + ".yaml"});
}

// Returns `sections`, the subsections of the section at `path`, and the keys of the components
// configured in it. The section's schema declares neither.
std::vector<std::string> with_slots(std::string_view path, std::vector<std::string> sections) {
  for (std::string& key : config::slot_keys(path)) sections.push_back(std::move(key));
  return sections;
}

void read_model(Checker& checker, Experiment& experiment) {
  check_old_conventions(checker);
  experiment.model = checker.options<ModelOptions>(
      "model", with_slots("model", {"norm", "loss", "init", "mtp", "conventions"}));
  experiment.norm = checker.options<NormOptions>("model.norm");
  experiment.loss = checker.options<LossOptions>("model.loss");
  experiment.init = checker.options<InitOptions>("model.init");
  experiment.mtp = checker.options<MtpOptions>("model.mtp");
  const int64_t layers = experiment.model.layers;
  experiment.attention = layer_ranges(checker, "model.attention", Kind::attention, layers);
  experiment.position = checker.component_at("model.position", Kind::position);
  experiment.feed_forward = layer_ranges(checker, "model.feed_forward", Kind::feed_forward, layers);
}

// Reads all components whose kind has no dedicated field in Experiment.
void read_others(Checker& checker, Experiment& experiment) {
  for (const config::Slot& slot : config::slots())
    if (!checker.has_read(slot.kind) && (!slot.optional || checker.node_at(std::string(slot.path))))
      experiment.others[slot.kind] = components(checker, slot);
}

/// Adds an error if a step, the run or a validation would process more tokens than supported.
void check_products(Checker& checker, const TrainOptions& train,
                    const ValidationOptions& validation) {
  constexpr int64_t kMaxStepTokens = int64_t{1} << 28, kMaxTokens = 1'000'000'000'000'000;
  const auto check = [&](const char* section, std::initializer_list<const char*> keys,
                         const std::string& what, std::initializer_list<int64_t> factors,
                         int64_t most) {
    const std::optional<int64_t> product = checked_product(factors);
    if (product && *product <= most) return true;
    const Node* node = checker.section(section);
    const config::Entry* entry = nullptr;
    for (const char* key : keys)
      if (node && !entry) entry = node->find(key);
    const std::string text = what + " must be at most " + std::to_string(most) + " tokens, not " +
                             (product ? std::to_string(*product) : "more than 2^63");
    if (entry)
      checker.diagnostics().error(*entry, text);
    else
      checker.diagnostics().error(checker.position_of(node), 1, text);
    return false;
  };
  const int64_t batch = train.batch, sequence = train.sequence;
  if (!check("train", {"sequence", "batch"}, "train.batch x train.sequence", {batch, sequence},
             kMaxStepTokens))
    return;
  if (train.steps)
    check("train", {"steps"}, "train.steps x train.batch x train.sequence",
          {*train.steps, batch, sequence}, kMaxTokens);
  check("validation", {"batches"}, "validation.batches x train.batch x train.sequence",
        {validation.batches, batch, sequence}, kMaxTokens);
}

void check_length(Checker& checker, const TrainOptions& train) {
  if (train.steps.has_value() != train.tokens.has_value()) return;
  const Node* section = checker.section("train");
  const config::Entry* steps = section ? section->find("steps") : nullptr;
  const config::Entry* tokens = section ? section->find("tokens") : nullptr;
  if (steps && tokens)
    checker.diagnostics().error(*tokens, "train has both 'steps' and 'tokens'; only one may be set",
                                {"'steps' is set at " + checker.diagnostics().place(steps->at)});
  else if (!steps && !tokens && !checker.is_misspelled("train.steps") &&
           !checker.is_misspelled("train.tokens"))
    checker.diagnostics().error(checker.position_of(section), 1,
                                "train needs 'steps' or 'tokens' to set the length of the run");
}

/// Reads the keys in a component's map that the core reads; the plugin reads the others.
template <class T>
T core_options(Checker& checker, const std::string& path) {
  const Schema schema = schema_of<T>();
  Node map;
  map.type = Node::Type::map;
  const Node* component = checker.node_at(path);
  for (const OptionSpec& option : schema.options)
    if (const config::Entry* entry = component ? component->find(option.key) : nullptr)
      map.entries.push_back(*entry);
  return options_from<T>(schema, checker.values(&map, schema, {path, {}, path}));
}

void fill(Checker& checker, Experiment& experiment) {
  checker.record("dsv3", int64_t{1}, Node{});
  const auto top = checker.options<config::TopOptions>(
      "", with_slots("", {"model", "train", "validation", "samples", "checkpoint", "hub", "log",
                          "tags", "conventions"}));
  experiment.name = top.name;
  experiment.output = top.output;
  read_model(checker, experiment);
  experiment.optimizer = optimizer_groups(checker);
  experiment.schedule = checker.component_at("schedule", Kind::schedule);
  experiment.strategy = checker.component_at("strategy", Kind::strategy);
  experiment.timeout = core_options<config::StrategyOptions>(checker, "strategy").timeout;
  experiment.data = checker.component_at("data", Kind::data);
  experiment.tokenizer = checker.component_at("data.tokenizer", Kind::tokenizer);
  experiment.train = checker.options<TrainOptions>("train");
  check_length(checker, experiment.train);
  experiment.validation = checker.options<ValidationOptions>("validation");
  check_products(checker, experiment.train, experiment.validation);
  experiment.samples = checker.options<SamplesOptions>("samples");
  experiment.checkpoint = checker.options<CheckpointOptions>("checkpoint");
  experiment.tracker = components(checker, *config::slot_at("tracker"));
  experiment.hub_endpoint = checker.options<config::HubOptions>("hub").endpoint;
  const auto log = checker.options<config::LogOptions>("log");
  experiment.log_level = log.level;
  experiment.system_interval = log.system_interval;
  experiment.tags = checker.tags();
  read_others(checker, experiment);
  checker.check_conventions();
}

}  // namespace

std::vector<MachineFile> machine_files(const std::string& chosen,
                                       const std::vector<std::filesystem::path>& folders) {
  std::vector<MachineFile> files;
  const auto folder = [](const char* variable, const char* below) {
    const char* value = std::getenv(variable);
    return value && *value ? std::filesystem::path(value) / below : std::filesystem::path();
  };
  std::filesystem::path home = folder("XDG_CONFIG_HOME", "dsv3");
  if (home.empty()) home = folder("HOME", ".config/dsv3");
  std::error_code ignored;
  if (!home.empty() && exists(home / "config.yaml", ignored))
    files.push_back({home / "config.yaml"});
  if (!chosen.empty()) {
    files.push_back({chosen});
    return files;
  }
  for (const std::filesystem::path& candidate : folders)
    if (exists(candidate / "config.yaml", ignored)) {
      files.push_back({candidate / "config.yaml", false});
      break;
    }
  return files;
}

namespace {

void read_machine_file(const MachineFile& file, MachineConfig& machine) {
  config::Diagnostics diagnostics;
  const Node tree = config::read_yaml_file(diagnostics, file.path);
  config::Resolver resolver(tree, diagnostics);
  const auto read = [&]<class T>(const std::string& key, OptionType type, T& field) {
    OptionSpec spec;
    spec.type = type;
    if (const config::Entry* entry = tree.find(key))
      if (auto value = convert(spec, entry->value, "'" + key + "'", resolver))
        field = std::get<T>(*value);
  };
  std::vector<std::string> paths;
  read("plugin_paths", OptionType::strings, paths);
  read("output", OptionType::string, machine.output);
  if (const config::Entry* entry = tree.find("run_id"); entry && !entry->value.is_null())
    read("run_id", OptionType::string, machine.run_id);
  if (!paths.empty() && !file.trusted)
    diagnostics.error(*tree.find("plugin_paths"),
                      "config.yaml in the current folder must not set 'plugin_paths'",
                      {config::kTrustedFiles});
  diagnostics.throw_if_any();
  for (const std::string& path : paths)
    machine.plugin_paths.push_back((file.path.parent_path() / path).lexically_normal().string());
}

}  // namespace

MachineConfig read_machine_config(const std::vector<MachineFile>& files) {
  MachineConfig machine;
  for (const MachineFile& file : files) read_machine_file(file, machine);
  return machine;
}

Experiment load_experiment(const ExperimentRequest& request, Catalog& catalog) {
  config::Diagnostics diagnostics;
  Experiment experiment;
  experiment.file = request.file.string();
  Node tree = merge_layers(read_layers(request, diagnostics, catalog), diagnostics, catalog,
                           experiment.notes);
  if (!std::as_const(tree).find("name"))
    tree.add("name", {}, config::make_value(name_from(request.file), {}));
  Checker checker(tree, diagnostics, catalog, experiment);
  fill(checker, experiment);
  diagnostics.throw_if_any();
  if (request.debug_vocab && !experiment.model.vocab) {
    experiment.model.vocab = request.debug_vocab;
    experiment.resolved.set("model.vocab", *request.debug_vocab, {"--debug"});
    experiment.notes.push_back("model.vocab is " + std::to_string(*request.debug_vocab) +
                               ", because --debug reads no tokenizer");
  }
  return experiment;
}

}  // namespace dsv3
