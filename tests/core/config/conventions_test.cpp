// Tests conventions (options for details on which implementations differ) and presets that set
// them.
#include <catch2/catch.hpp>

#include <dsv3/runtime/compare.h>

#include "fake.h"

using dsv3::Experiment;
using dsv3::OptionValue;

namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

constexpr const char* kTitan =
    "conventions:\n"
    "  model.mtp.input: raw\n"
    "  feed_forward.moe.centring: mean\n"
    "  attention.mha.unused: 3\n";
constexpr const char* kMegatron =
    "conventions: {model.mtp.denominator: own, optimizer.muon.nesterov: false}\n";

// Loads an experiment that extends a preset.
std::filesystem::path with_preset(const fake::Folder& folder, const std::string& preset) {
  folder.write("preset.yaml", preset);
  const std::string text = fake::kExperiment;
  return folder.write("with.yaml", "dsv3: 1\nextends: preset.yaml" + text.substr(text.find('\n')));
}

}  // namespace

TEST_CASE("a preset sets options that the experiment does not set") {
  fake::Folder folder;
  const auto file = with_preset(folder, kTitan);
  const Experiment titan = fake::load(file);
  CHECK(titan.mtp.input == "raw");
  CHECK(titan.mtp.denominator == "main");
  CHECK(titan.feed_forward[1].component.options.at("centring") == OptionValue(std::string("mean")));
  CHECK(titan.optimizer[1].component.options.count("nesterov") == 0);
  CHECK(titan.conventions.at("feed_forward.moe.centring") == "mean");
  CHECK(titan.conventions.at("model.mtp.input") == "raw");
  CHECK(titan.conventions.at("optimizer.muon.nesterov") == "true");
  const Experiment megatron = fake::load(with_preset(folder, kMegatron));
  CHECK(megatron.mtp.denominator == "own");
  CHECK(megatron.mtp.input == "normed");
  CHECK(megatron.optimizer[1].component.options.at("nesterov") == OptionValue(false));
}

TEST_CASE("values in the experiment override those in a preset") {
  fake::Folder folder;
  const auto file = with_preset(folder, kTitan);
  const Experiment e = fake::load(
      file,
      {"model.mtp.input=normed",
       "feed_forward=[{layers: 0-1, plugin: moe, centring: none}, {layers: 2-3, plugin: moe}]"});
  CHECK(e.mtp.input == "normed");
  CHECK(e.conventions.at("feed_forward.moe.centring") == "none");
  CHECK(e.conventions.at("feed_forward.moe.centring (layers 2-3)") == "mean");
  // The command line overrides the preset, in both spellings of the key.
  CHECK(fake::load(file, {"conventions.model.mtp.input=normed"}).mtp.input == "normed");
  CHECK(fake::load(file, {"conventions={model.mtp.input: normed}"}).mtp.input == "normed");
}

TEST_CASE("the origin of a value from a preset is the preset file") {
  fake::Folder folder;
  const Experiment e =
      fake::load(with_preset(folder, kTitan), {"model.mtp.concat=embedding_first"});
  const std::string origins = folder.shorten(e.resolved.yaml(true));
  CHECK(has(origins, "    input: raw  # preset.yaml:2:20\n"));
  CHECK(has(origins, "      centring: mean  # preset.yaml:3:30\n"));
  CHECK(has(origins, "    concat: embedding_first  # command line: "));
  CHECK(has(origins, "    denominator: main  # default\n"));
}

TEST_CASE("a resolved experiment that extends a preset round-trips through YAML") {
  fake::Folder folder;
  for (const char* preset : {"", kTitan, kMegatron}) {
    const Experiment first = fake::load(with_preset(folder, preset));
    const auto stored = folder.write("run/config.yaml", first.resolved.yaml());
    const Experiment second = fake::load(stored);
    CHECK(second.resolved.yaml() == first.resolved.yaml());
    CHECK(second.conventions == first.conventions);
    CHECK(second.mtp.input == first.mtp.input);
  }
}

TEST_CASE(
    "the former `conventions` key is accepted in a stored run, but not in an experiment file") {
  fake::Folder folder;
  fake::Catalog catalog;
  dsv3::ExperimentRequest request;
  std::string text = fake::load(with_preset(folder, kTitan)).resolved.yaml();
  text.insert(text.find("  hidden:"), "  conventions: torchtitan\n");
  request.file = folder.write("run/config.yaml", text);
  request.stored = true;
  CHECK(load_experiment(request, catalog).mtp.input == "raw");
  request.stored = false;
  CHECK_THROWS_AS(load_experiment(request, catalog), dsv3::ConfigError);
}

TEST_CASE(
    "comparing experiments with and without a preset lists every value that the preset changes") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const dsv3::Comparison difference =
      compare_experiments(fake::load(file), fake::load(with_preset(folder, kTitan)));
  CHECK(difference.factors ==
        std::vector<std::string>{"model.mtp.input", "model.feed_forward.1.centring"});
}
