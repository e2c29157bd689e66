// Tests that resolved experiments round-trip through YAML and that malformed files never crash the
// loader.
#include <random>

#include <catch2/catch.hpp>

#include "fake.h"

using dsv3::ComponentSpec;
using dsv3::Experiment;
using dsv3::OptionValues;

namespace {

// Returns a component's options, including the defaults.
OptionValues complete(const ComponentSpec& spec) {
  OptionValues values = spec.options;
  fake::Catalog catalog;
  if (const dsv3::Schema* schema = catalog.schema(spec.kind, spec.plugin, ""))
    for (const dsv3::OptionSpec& option : schema->options)
      values.emplace(option.key, option.default_value);
  return values;
}

void check_equal(const ComponentSpec& a, const ComponentSpec& b) {
  CHECK(a.kind == b.kind);
  CHECK(a.plugin == b.plugin);
  CHECK(a.library == b.library);
  CHECK(fake::show(complete(a)) == fake::show(complete(b)));
  CHECK((complete(a) == complete(b)));
}

void check_equal(const Experiment& a, const Experiment& b) {
  CHECK(a.name == b.name);
  CHECK(a.resolved.yaml() == b.resolved.yaml());
  CHECK(a.conventions == b.conventions);
  CHECK(b.notes.empty());
  CHECK(a.model.layers == b.model.layers);
  CHECK(a.model.vocab == b.model.vocab);
  CHECK(a.model.recompute == b.model.recompute);
  CHECK(a.norm.eps == b.norm.eps);
  CHECK(a.init.std == b.init.std);
  CHECK(a.mtp.weight == b.mtp.weight);
  CHECK(a.train.steps == b.train.steps);
  CHECK(a.train.tokens == b.train.tokens);
  CHECK(a.train.micro_batch == b.train.micro_batch);
  CHECK(a.train.clip == b.train.clip);
  CHECK(a.samples.prompts == b.samples.prompts);
  CHECK(a.output == b.output);
  CHECK(a.log_level == b.log_level);
  CHECK(a.system_interval == b.system_interval);
  REQUIRE(a.attention.size() == b.attention.size());
  REQUIRE(a.feed_forward.size() == b.feed_forward.size());
  for (size_t i = 0; i < a.feed_forward.size(); ++i) {
    CHECK(a.feed_forward[i].first == b.feed_forward[i].first);
    CHECK(a.feed_forward[i].last == b.feed_forward[i].last);
    check_equal(a.feed_forward[i].component, b.feed_forward[i].component);
  }
  for (size_t i = 0; i < a.attention.size(); ++i)
    check_equal(a.attention[i].component, b.attention[i].component);
  REQUIRE(a.optimizer.size() == b.optimizer.size());
  for (size_t i = 0; i < a.optimizer.size(); ++i) {
    CHECK(a.optimizer[i].name == b.optimizer[i].name);
    CHECK(a.optimizer[i].roles == b.optimizer[i].roles);
    CHECK(a.optimizer[i].match == b.optimizer[i].match);
    check_equal(a.optimizer[i].component, b.optimizer[i].component);
  }
  check_equal(a.position, b.position);
  check_equal(a.schedule, b.schedule);
  check_equal(a.strategy, b.strategy);
  check_equal(a.data, b.data);
  check_equal(a.tokenizer, b.tokenizer);
  REQUIRE(a.tracker.size() == b.tracker.size());
  for (size_t i = 0; i < a.tracker.size(); ++i) check_equal(a.tracker[i], b.tracker[i]);
}

}  // namespace

TEST_CASE("a resolved experiment loads as the same experiment") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const std::vector<std::vector<std::string>> variants{
      {},
      {"train.tokens=1e9"},
      {"optimizer=adamw", "tracker=[]", "data=synthetic", "data.tokenizer=null"},
      {"optimizer=[{plugin: adamw, match: 'layers\\.[0-3]\\.', name: low}, adamw]"},
      {"attention=[{layers: 0-1, plugin: mha, qk_norm: true}, {layers: 2-3, plugin: mla}]",
       "feed_forward=moe"},
      {"samples.prompts=[\"a\\nb\\t\\\"\", '', 'null', 'x: y', '$${z}', '#', \"\\u00fc\"]",
       "model.init.std=1e-7"},
      {"strategy={plugin: zero, library: lib/my.so}", "position={plugin: rope, layout: halves}"},
      {"train.micro_batch=auto", "model.vocab=1234", "train.clip=0.1", "model.norm.eps=1e-300"}};
  for (const auto& settings : variants) {
    INFO((settings.empty() ? "" : settings[0]));
    const Experiment first = fake::load(file, settings);
    const std::string written = first.resolved.yaml();
    INFO(written);
    const Experiment second = fake::load(folder.write("run/resolved.yaml", written));
    check_equal(first, second);
  }
}

TEST_CASE("the experiment stored in a run can be loaded with further overrides") {
  fake::Folder folder;
  const Experiment first =
      fake::load(folder.write("e.yaml", fake::kExperiment), {"train.tokens=1e6"});
  const auto run = folder.write("run/resolved.yaml", first.resolved.yaml());
  const Experiment longer =
      fake::load(run, {"train.steps=99", "attention=mha", "optimizer.1.lr=0.5"});
  CHECK(longer.train.steps == 99);
  CHECK_FALSE(longer.train.tokens.has_value());
  CHECK(longer.attention[0].component.plugin == "mha");
  CHECK(longer.optimizer[1].component.options.at("lr") == dsv3::OptionValue(0.5));
}

TEST_CASE("a resolved experiment contains every default") {
  fake::Folder folder;
  const Experiment e = fake::load(folder.write("e.yaml", fake::kExperiment));
  for (const char* line : {"\n    qk_rope_dim: 32\n", "\n    betas: [0.9, 0.95]\n", "\n  clip: 1\n",
                           "\n    place: pre\n"})
    CHECK(e.resolved.yaml().find(line) != std::string::npos);
}

TEST_CASE("truncated and damaged files are loaded or rejected without a crash") {
  fake::Folder folder;
  const std::string whole = std::string(fake::kExperiment) + "extra: &a [1, {b: *a2}]\n";
  std::mt19937 random(7);
  int rejected = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string text = whole.substr(0, random() % (whole.size() + 1));
    for (int flips = static_cast<int>(random() % 4); flips > 0 && !text.empty(); --flips)
      text[random() % text.size()] =
          static_cast<char>("{}[]:,&*!|>'\"%@`#-? \n\t\0\xff$"[random() % 26]);
    rejected += !fake::errors_of(folder.write("e.yaml", text)).empty();
  }
  CHECK(rejected > 1000);  // some damaged files still load, e.g. if only the end is missing
}
