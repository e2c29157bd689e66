// model.conventions: one word for every option on which implementations differ.
#include <catch2/catch.hpp>

#include <dsv3/runtime/compare.h>

#include "fake.h"

using dsv3::Experiment;
using dsv3::OptionValue;

namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

dsv3::ExperimentRequest request(const std::filesystem::path& file,
                                const std::vector<std::string>& overrides) {
  dsv3::ExperimentRequest request;
  request.file = file;
  request.overrides = overrides;
  return request;
}

struct Odd {
  std::string form = "a";
  static void describe(dsv3::OptionSchema<Odd>& s) {
    s.add("form", &Odd::form, "form").convention({{"nanochat", "b"}});
  }
};
struct Mistyped {
  std::string form = "a";
  static void describe(dsv3::OptionSchema<Mistyped>& s) {
    s.add("form", &Mistyped::form, "form").convention({{"megatron", true}});
  }
};

}  // namespace

TEST_CASE("an implementation's conventions are the values of unset options") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const Experiment titan = fake::load(file, {"model.conventions=torchtitan"});
  CHECK(titan.mtp.input == "raw");
  CHECK(titan.mtp.denominator == "main");
  CHECK(titan.feed_forward[1].component.options.at("centring") == OptionValue(std::string("mean")));
  CHECK(titan.optimizer[1].component.options.count("nesterov") == 0);
  CHECK(titan.conventions.at("feed_forward.moe.centring") == "mean");
  CHECK(titan.conventions.at("model.mtp.input") == "raw");
  CHECK(titan.conventions.at("optimizer.muon.nesterov") == "true");
  const Experiment megatron = fake::load(file, {"model.conventions=megatron"});
  CHECK(megatron.mtp.denominator == "own");
  CHECK(megatron.mtp.input == "normed");
  CHECK(megatron.optimizer[1].component.options.at("nesterov") == OptionValue(false));
  CHECK(fake::load(file, {"model.conventions=deepseek"}).conventions ==
        fake::load(file).conventions);
}

TEST_CASE("what the experiment sets goes before conventions") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const Experiment e =
      fake::load(file, {"model.conventions=torchtitan", "model.mtp.input=normed",
                        "feed_forward=[{layers: 0-1, plugin: moe, centring: none}, {layers: 2-3, "
                        "plugin: moe}]"});
  CHECK(e.mtp.input == "normed");
  CHECK(e.conventions.at("feed_forward.moe.centring") == "none");
  CHECK(e.conventions.at("feed_forward.moe.centring (layers 2-3)") == "mean");
}

TEST_CASE("values of conventions say where they come from") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  fake::Catalog catalog;
  const std::string origins = print_with_origins(
      request(file, {"model.conventions=torchtitan", "model.mtp.concat=embedding_first"}), catalog);
  CHECK(has(origins, "    input: raw  # model.conventions: torchtitan\n"));
  CHECK(has(origins, "      centring: mean  # model.conventions: torchtitan\n"));
  CHECK(has(origins, "    concat: embedding_first  # command line: "));
  CHECK(has(origins, "    denominator: main  # default\n"));
}

TEST_CASE("a resolved experiment under conventions loads again as an equal one") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  for (const std::string& name : dsv3::implementations()) {
    const Experiment first = fake::load(file, {"model.conventions=" + name});
    const auto stored = folder.write("run/config.yaml", first.resolved);
    const Experiment second = fake::load(stored);
    CHECK(second.resolved == first.resolved);
    CHECK(second.conventions == first.conventions);
    CHECK(second.mtp.input == first.mtp.input);
    // Stored values are set ones: another word changes what is new only.
    const Experiment other = fake::load(
        stored, {"model.conventions=torchtitan", "feed_forward=swiglu", "feed_forward=moe"});
    CHECK(other.mtp.input == first.mtp.input);
    CHECK(other.conventions.at("feed_forward.moe.centring") == "mean");
  }
}

TEST_CASE("comparison shows what conventions changed, each as a factor") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  fake::Catalog catalog;
  const dsv3::Comparison difference = compare_experiments(
      request(file, {}), request(file, {"model.conventions=torchtitan"}), catalog);
  CHECK(difference.factors ==
        std::vector<std::string>{"model.mtp.input", "model.feed_forward.1.centring"});
}

TEST_CASE("unknown implementations are refused") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  CHECK(
      has(fake::mistakes(file, {"model.conventions=nanochat"}), "deepseek, megatron, torchtitan"));
  CHECK_THROWS_WITH(dsv3::schema_of<Odd>(), Catch::Contains("'nanochat'"));
  CHECK_THROWS_WITH(dsv3::schema_of<Mistyped>(), Catch::Contains("another type"));
}
