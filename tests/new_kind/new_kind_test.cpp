// Tests that a new component kind requires a row in the kind table, an interface and plugins, but
// no change to libdsv3. This program compiles core/src/sdk/kinds.cpp with the row in rows.h, and
// its kinds() replaces the one in libdsv3.
#include <fstream>

#include <catch2/catch.hpp>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/json_schema.h>
#include <dsv3/runtime/plugins.h>

#include "call/call.h"
#include "core/support/temporary_folder.h"
#include "critic.h"

using Catch::Matchers::Contains;

namespace {

constexpr const char* kExperiment = R"(dsv3: 1
name: criticised
model:
  hidden: 16
  layers: 1
  vocab: 64
  attention: {plugin: mha, heads: 4}
  position: rope
  feed_forward: {plugin: swiglu, hidden: 32}
optimizer: {plugin: adamw, lr: 1.0e-3}
schedule: constant
strategy: single
data: synthetic
train: {steps: 4, batch: 2, sequence: 16}
)";

dsv3::Plugins& plugins() {
  static dsv3::Plugins plugins(
      {{DSV3_FIXTURES "/registries/new_kind.toml"}, {DSV3_BUILD_DIR "/registries/builtin.toml"}});
  return plugins;
}

dsv3::ExperimentRequest request_of(const TemporaryFolder& folder, const std::string& more) {
  dsv3::ExperimentRequest request;
  request.file = folder / "criticised.yaml";
  std::ofstream(request.file) << kExperiment << more;
  return request;
}

dsv3::Experiment load(const std::string& more) {
  const TemporaryFolder folder;
  return dsv3::load_experiment(request_of(folder, more), plugins());
}

}  // namespace

TEST_CASE("the new kind is available in the kind table, registries and error messages") {
  CHECK(dsv3::kind_from_name("critic") == dsv3::Kind::critic);
  CHECK(dsv3::kinds().back().path == "critic");
  CHECK_THROWS_WITH(dsv3::kind_from_name("critc"), Contains("did you mean 'critic'?"));
  CHECK(plugins().names(dsv3::Kind::critic) == std::vector<std::string>{"strict"});
}

TEST_CASE("an experiment can use components of the new kind, and their options are checked") {
  const dsv3::Experiment experiment =
      load("critic: [strict, {plugin: strict, tolerance: 2, weight: 3}]\n");
  const auto& critics = experiment.others.at(dsv3::Kind::critic);
  REQUIRE(critics.size() == 2);
  CHECK(std::get<double>(critics[1].options.at("tolerance")) == 2);
  CHECK_THAT(experiment.resolved.yaml(), Contains("critic:") && Contains("tolerance: 0.5"));
  CHECK(load("").others.empty());
  CHECK_THROWS_WITH(load("critic: {plugin: strict, tolerance: -1}\n"), Contains("tolerance"));
  CHECK_THROWS_WITH(load("critic: {plugin: strict, tolerence: 1}\n"),
                    Contains("did you mean 'tolerance'?"));
  CHECK_THROWS_WITH(load("critic: strikt\n"), Contains("unknown critic plugin 'strikt'"));
  CHECK_THROWS_WITH(load("critics: strict\n"), Contains("did you mean 'critic'?"));
}

TEST_CASE("a component of the new kind is constructed, called and named in errors") {
  const dsv3::Experiment experiment = load("critic: strict\n");
  const auto critic = dsv3::make<dsv3::Critic>(
      plugins(), experiment.others.at(dsv3::Kind::critic).at(0), dsv3::CriticContext{3.0});
  CHECK(dsv3::call(*critic, "opinion", &dsv3::Critic::opinion, 3.4) == "good");
  CHECK(dsv3::call(*critic, "opinion", &dsv3::Critic::opinion, 3.6) == "bad");
  CHECK_THROWS_WITH(dsv3::call(*critic, "opinion", &dsv3::Critic::opinion, -1.0),
                    Contains("critic 'strict' (opinion)") && Contains("criticised.yaml:15:9") &&
                        Contains("negative loss"));
}

TEST_CASE("the JSON Schema and comparisons include the new kind") {
  CHECK(dsv3::experiment_schema(plugins(), false).schema["properties"].contains("critic"));
  const dsv3::Comparison comparison = dsv3::compare_experiments(
      load("critic: strict\n"), load("critic: {plugin: strict, tolerance: 2}\n"));
  REQUIRE(comparison.differences.size() == 1);
  CHECK(comparison.differences[0].key == "critic.tolerance");
}
