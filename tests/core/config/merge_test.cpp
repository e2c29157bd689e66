// Tests merging of configuration layers, aliases, plugin changes, references, and the YAML of
// resolved experiments.
#include <catch2/catch.hpp>

#include "fake.h"

using dsv3::Experiment;

namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

dsv3::OptionValue value(const dsv3::ComponentSpec& spec, const std::string& key) {
  return spec.options.at(key);
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

}  // namespace

TEST_CASE("every value in a loaded experiment has the type of its option") {
  fake::Folder folder;
  const Experiment e = fake::load(folder.write("e.yaml", fake::kExperiment));
  CHECK(e.name == "tiny");
  CHECK(e.model.hidden == 64);
  CHECK_FALSE(e.model.vocab.has_value());
  CHECK(e.mtp.depth == 1);
  REQUIRE(e.attention.size() == 1);
  CHECK(e.attention[0].first == 0);
  CHECK(e.attention[0].last == 3);
  CHECK(e.attention[0].component.plugin == "mla");
  CHECK(fake::show(e.attention[0].component.options) == "heads=4 kv_lora_rank=16");
  CHECK(folder.shorten(e.attention[0].component.origin.text()) == "e.yaml:8:23");
  CHECK(value(e.position, "theta") == dsv3::OptionValue(1e4));
  REQUIRE(e.feed_forward.size() == 2);
  CHECK(e.feed_forward[1].first == 1);
  CHECK(value(e.feed_forward[1].component, "scales") ==
        dsv3::OptionValue(std::vector<double>{1, 2.5}));
  REQUIRE(e.optimizer.size() == 2);
  CHECK(e.optimizer[0].name == "adamw");
  CHECK(e.optimizer[0].roles.size() == 5);
  CHECK(e.optimizer[1].roles == std::vector<std::string>{"matrix"});
  CHECK(e.data.options.size() == 1);
  CHECK(e.tokenizer.plugin == "bpe");
  CHECK(e.tokenizer.kind == dsv3::Kind::tokenizer);
  CHECK(e.train.steps == 20);
  CHECK_FALSE(e.train.tokens.has_value());
  CHECK(e.samples.prompts == std::vector<std::string>{"The \"Lord\"", "a: b # c", "tiny ${x}"});
  REQUIRE(e.tracker.size() == 2);
  CHECK(e.tracker[0].plugin == "csv");
  CHECK(e.notes.empty());
  CHECK(e.conventions ==
        std::map<std::string, std::string>{{"feed_forward.moe.centring", "none"},
                                           {"model.mtp.concat", "embedding_first"},
                                           {"model.mtp.denominator", "main"},
                                           {"model.mtp.input", "normed"},
                                           {"model.norm.place", "pre"},
                                           {"optimizer.muon.nesterov", "true"},
                                           {"position.rope.layout", "interleaved"}});
}

TEST_CASE("values are parsed as numbers, strings or booleans as the option requires") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  CHECK(fake::load(file, {"train.tokens=1e9"}).train.tokens == 1000000000);
  CHECK(fake::load(file, {"train.tokens=2.5e3"}).train.tokens == 2500);
  CHECK(fake::load(file, {"train.seed=9223372036854775807"}).train.seed == INT64_MAX);
  CHECK(fake::load(file, {"train.clip=1"}).train.clip == 1.0);
  CHECK(fake::load(file, {"model.vocab=100"}).model.vocab == 100);
  CHECK(fake::load(file, {"data.path=123"}).data.options.at("path") ==
        dsv3::OptionValue(std::string("123")));
  CHECK(fake::load(file, {"model.tied_head=true"}).model.tied_head);
  CHECK_FALSE(fake::errors_of(file, {"model.tied_head=yes"}).empty());
  CHECK_FALSE(fake::errors_of(file, {"train.steps=1_000"}).empty());
}

TEST_CASE(
    "later configuration layers override earlier ones: machine defaults, base files, experiment "
    "file, settings, command line") {
  fake::Folder folder;
  const auto machine = folder.write("config.yaml", R"(
plugin_paths: [plugins, /abs]
output: /machine/runs
tracker: csv
hub: {endpoint: "http://mirror"}
log: {level: debug}
)");
  folder.write("base/a.yaml", R"(
train: {steps: 1, batch: 2, seed: 3, log_every: 4, sequence: 5}
samples: {prompts: [a, b]}
)");
  folder.write("base/b.yaml", "extends: a.yaml\ntrain: {seed: 30, log_every: 40, sequence: 50}\n");
  folder.write("base/c.yaml", "train: {log_every: 400, sequence: 500}\nlog: {level: warning}\n");
  const auto file = folder.write("e.yaml", R"(dsv3: 1
extends: [base/b.yaml, base/c.yaml]
model: {layers: 1, attention: mha, position: none, feed_forward: swiglu}
optimizer: adamw
schedule: cosine
strategy: single
data: synthetic
train: {sequence: 5000}
samples: {prompts: [c]}
)");
  fake::Catalog catalog;
  dsv3::ExperimentRequest request;
  request.file = file;
  request.machine_files = {{machine}};
  request.settings = {{"train.threads", int64_t{2}, "sweep point"},
                      {"train.micro_batch", int64_t{2}, "sweep point"},
                      {"train.not_finite", "skip", "another"}};
  request.command_line = {"train.micro_batch=1"};
  const Experiment e = load_experiment(request, catalog);
  CHECK(e.train.batch == 2);
  CHECK(e.train.seed == 30);
  CHECK(e.train.log_every == 400);
  CHECK(e.train.sequence == 5000);
  CHECK(e.train.micro_batch == 1);
  CHECK(e.train.threads == 2);
  CHECK(e.train.not_finite == "skip");
  CHECK(e.samples.prompts == std::vector<std::string>{"c"});
  CHECK(e.name == "e");
  CHECK(e.output == "/machine/runs");
  CHECK(e.hub_endpoint == "http://mirror");
  CHECK(e.log_level == "warning");
  REQUIRE(e.tracker.size() == 1);
  const std::string origins = folder.shorten(e.resolved.yaml(true));
  CHECK(has(origins, "  steps: 1  # base/a.yaml:2:16\n"));
  CHECK(has(origins, "  log_every: 400  # base/c.yaml:1:20\n"));
  CHECK(has(origins, "  micro_batch: 1  # command line: train.micro_batch=1\n"));
  CHECK(has(origins, "  threads: 2  # sweep point: train.threads=2\n"));
  CHECK(has(origins, "  not_finite: skip  # another: train.not_finite=skip\n"));
  CHECK(has(origins, "  clip: 1  # default\n"));
  CHECK(has(origins, "  plugin: csv  # config.yaml:4:10\n"));
  CHECK(folder.shorten(e.origin("train.steps").text()) == "base/a.yaml:2:16");
  CHECK(e.origin("train.threads").text() == "sweep point");
  CHECK(e.origin("train.micro_batch").full_text() == "command line: train.micro_batch=1");
  CHECK(e.origin("schedule.warmup").text() == "default");
  CHECK(e.origin("no.such.path").text() == "default");

  const dsv3::MachineConfig read = dsv3::read_machine_config({{machine}});
  CHECK(read.plugin_paths ==
        std::vector<std::string>{(folder.path() / "plugins").string(), "/abs"});
  CHECK(dsv3::read_machine_config({}).plugin_paths.empty());
  CHECK_THROWS_AS(dsv3::read_machine_config({{machine, false}}), dsv3::ConfigError);
  request.machine_files = {{folder.write("bad.yaml", "train: {steps: 3}\n")}};
  CHECK_THROWS_AS(load_experiment(request, catalog), dsv3::ConfigError);
}

TEST_CASE("changing a plugin keeps the options that both plugins share and reports the others") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  for (const std::string word :
       {"attention=mha", "model.attention=mha", "model.attention.plugin=mha"}) {
    const Experiment e = fake::load(file, {word});
    CHECK(e.attention[0].component.plugin == "mha");
    CHECK(fake::show(e.attention[0].component.options) == "heads=4");
    CHECK(e.attention[0].component.origin.text() == "command line");
    CHECK(folder.shorten(joined(e.notes)) ==
          "model.attention: options of 'mla' that 'mha' does not share were dropped: kv_lora_rank "
          "(e.yaml:8:38)\n");
  }
  const Experiment e =
      fake::load(file, {"attention={plugin: mha, qk_norm: true}", "attention.heads=2"});
  CHECK(fake::show(e.attention[0].component.options) == "heads=2 qk_norm=true");
  CHECK(fake::load(file, {"data=synthetic"}).tokenizer.plugin == "bpe");
  CHECK(fake::load(file, {"data=synthetic", "tokenizer=bytes"}).tokenizer.plugin == "bytes");
  CHECK(fake::load(file, {"data.tokenizer=null"}).tokenizer.plugin.empty());
  CHECK(fake::load(file, {"tracker=[]"}).tracker.empty());
}

TEST_CASE("a list of components can be replaced, and its elements can be changed by index") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const Experiment swiglu = fake::load(file, {"feed_forward=swiglu"});
  REQUIRE(swiglu.feed_forward.size() == 1);
  CHECK(swiglu.feed_forward[0].last == 3);
  CHECK(fake::show(swiglu.feed_forward[0].component.options) == "hidden=256");
  const Experiment indexed = fake::load(file, {"feed_forward.1.top_k=3", "optimizer.1={lr: 7}"});
  CHECK(value(indexed.feed_forward[1].component, "top_k") == dsv3::OptionValue(int64_t{3}));
  CHECK(value(indexed.feed_forward[1].component, "routed") == dsv3::OptionValue(int64_t{16}));
  CHECK(value(indexed.optimizer[1].component, "lr") == dsv3::OptionValue(7.0));
  const Experiment open = fake::load(file, {"model.layers=9", "feed_forward.1.layers=1-"});
  CHECK(open.feed_forward[1].last == 8);
  const Experiment mixed =
      fake::load(file, {"attention=[{layers: 2-3, plugin: mla}, {layers: 0-1, plugin: mha}]"});
  REQUIRE(mixed.attention.size() == 2);
  CHECK(mixed.attention[0].component.plugin == "mha");
  const Experiment two = fake::load(
      file,
      {"feed_forward=[{layers: 0-1, plugin: moe}, {layers: 2-3, plugin: moe, centring: mean}]"});
  CHECK(two.conventions.at("feed_forward.moe.centring") == "none");
  CHECK(two.conventions.at("feed_forward.moe.centring (layers 2-3)") == "mean");
}

TEST_CASE("aliases expand to YAML") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const Experiment one = fake::load(file, {"optimizer=adamw", "optimizer.lr=0.5"});
  REQUIRE(one.optimizer.size() == 1);
  CHECK(one.optimizer[0].roles.empty());
  CHECK(fake::show(one.optimizer[0].component.options) == "lr=0.500000f");
  CHECK(folder.shorten(joined(one.notes)) ==
        "optimizer: options of 'muon' were dropped: lr (e.yaml:15:34)\n");
  const Experiment muon =
      fake::load(file, {"optimizer=adamw", "optimizer=muon", "optimizer.1.lr=0.25"});
  REQUIRE(muon.optimizer.size() == 2);
  CHECK(value(muon.optimizer[0].component, "lr") == dsv3::OptionValue(3e-4));
  CHECK(value(muon.optimizer[1].component, "lr") == dsv3::OptionValue(0.25));
  CHECK(muon.optimizer[1].component.plugin == "muon");
  // If a plugin and an alias have the same name, `plugin:` selects the plugin.
  CHECK(fake::load(file, {"optimizer={plugin: muon, lr: 1}"}).optimizer.size() == 1);
  const Experiment zero = fake::load(file, {"strategy=deepspeed_stage_2"});
  CHECK(zero.strategy.plugin == "zero");
  CHECK(value(zero.strategy, "stage") == dsv3::OptionValue(int64_t{2}));
  CHECK(zero.strategy.origin.text() == "command line");
  const Experiment three = fake::load(file, {"strategy={plugin: deepspeed_stage_2, stage: 3}"});
  CHECK(value(three.strategy, "stage") == dsv3::OptionValue(int64_t{3}));
}

TEST_CASE("replacing a list of components keeps the options of plugins that remain") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const std::string one = "optimizer={plugin: adamw, lr: 5.0e-3, betas: [0.8, 0.9]}";
  const auto lr = [](const dsv3::OptimizerGroup& group) { return value(group.component, "lr"); };
  for (const std::string& before : {one, "optimizer=[" + one.substr(10) + "]"}) {
    const Experiment muon = fake::load(file, {before, "optimizer=muon"});
    REQUIRE(muon.optimizer.size() == 2);
    CHECK(fake::show(muon.optimizer[0].component.options) ==
          "betas=[0.800000f;0.900000f;] lr=0.005000f");
    CHECK(muon.optimizer[1].component.options.empty());
    const Experiment back = fake::load(file, {before, "optimizer=muon", "optimizer=adamw"});
    REQUIRE(back.optimizer.size() == 1);
    CHECK(lr(back.optimizer[0]) == dsv3::OptionValue(5e-3));
  }
  // Options of the same name do not carry over to another plugin.
  const std::string text = fake::kExperiment;
  const size_t list = text.find("optimizer:"), end = text.find("schedule:");
  const auto single =
      folder.write("single.yaml", text.substr(0, list) + "optimizer: [{plugin: adamw, lr: 1}]\n" +
                                      text.substr(end));
  for (const std::string& over : {"optimizer={plugin: muon}", "optimizer=[{plugin: muon}]"}) {
    const Experiment replaced = fake::load(single, {over});
    CHECK(replaced.optimizer[0].component.options.empty());
  }
  CHECK(folder.shorten(joined(fake::load(single, {"optimizer={plugin: muon}"}).notes)) ==
        "optimizer: options of 'adamw' that 'muon' does not share were dropped: lr "
        "(single.yaml:13:29)\n");
  // Groups with different values have no common value to keep.
  const std::string two = "optimizer=[{plugin: adamw, role: norm, lr: 1}, {plugin: adamw, lr: 2}]";
  const Experiment differing = fake::load(file, {two, "optimizer=muon"});
  CHECK(differing.optimizer[0].component.options.empty());
  CHECK(joined(differing.notes) ==
        "optimizer: option 'lr' of 'adamw' was dropped, because its components do not agree on a "
        "value (command line)\n");
  // A complete list replaces everything.
  const Experiment whole = fake::load(file, {one, "optimizer=[{plugin: adamw, betas: [0, 1]}]"});
  CHECK(fake::show(whole.optimizer[0].component.options) == "betas=[0.000000f;1.000000f;]");
  CHECK(fake::load(file, {"tracker={plugin: mlflow, token: t}"}).tracker[0].options.size() == 2);
}

TEST_CASE("a required option of a replaced plugin is missing, and the error says why") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const std::string error = fake::errors_of(file, {"tokenizer=bytes", "data={plugin: files}"});
  CHECK(has(error, "'path' is missing in data (plugin 'files')"));
  INFO(error);
  CHECK(has(folder.shorten(error), "the value for 'text' (e.yaml:18:22) is not used"));
}

TEST_CASE("train.tokens on the command line replaces train.steps in the experiment file") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const Experiment e = fake::load(file, {"train.tokens=1000"});
  CHECK(e.train.tokens == 1000);
  CHECK_FALSE(e.train.steps.has_value());
  CHECK(folder.shorten(joined(e.notes)) ==
        "train.tokens (command line) replaces train.steps (e.yaml:19:16)\n");
}

TEST_CASE("optimizer groups have unique names") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const Experiment e = fake::load(
      file, {"optimizer=[{plugin: adamw, role: norm}, {plugin: adamw, role: [bias, head]}, "
             "{plugin: adamw, role: norm, match: x}, {plugin: adamw, name: rest}]"});
  std::vector<std::string> names;
  for (const auto& group : e.optimizer) names.push_back(group.name);
  CHECK(names == std::vector<std::string>{"adamw_norm", "adamw_bias_head", "adamw_norm_2", "rest"});
  CHECK_FALSE(
      fake::errors_of(file, {"optimizer=[{plugin: adamw, name: a}, {plugin: adamw, name: a}]"})
          .empty());
}

TEST_CASE(
    "references are resolved after merging, and values of environment variables are never stored") {
  fake::Folder folder;
  ::setenv("DSV3_TEST_SECRET", "hunter2", 1);
  ::setenv("DSV3_TEST_STEPS", "33", 1);
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const std::vector<std::string> settings{
      "tracker=[{plugin: mlflow, token: \"a ${env:DSV3_TEST_SECRET}\", url: "
      "\"${tracker.0.token}\"}]",
      "train.steps=\"${env:DSV3_TEST_STEPS}\"", "train.log_every='${train.batch}'",
      "train.batch=16"};
  const Experiment e = fake::load(file, settings);
  CHECK(value(e.tracker[0], "token") == dsv3::OptionValue(std::string("a hunter2")));
  CHECK(value(e.tracker[0], "url") == dsv3::OptionValue(std::string("a hunter2")));
  CHECK(e.train.steps == 33);
  CHECK(e.train.log_every == 16);
  const std::string written = e.resolved.yaml();
  CHECK_FALSE(has(written, "hunter2"));
  CHECK(has(written, "token: \"a ${env:DSV3_TEST_SECRET}\""));
  const Experiment reloaded = fake::load(folder.write("resolved.yaml", written));
  CHECK(reloaded.train.steps == 33);
  CHECK(value(reloaded.tracker[0], "token") == dsv3::OptionValue(std::string("a hunter2")));
  CHECK(reloaded.resolved.yaml() == written);
}

TEST_CASE("references that expand exponentially are rejected") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const auto prompts = [](const std::string& last) {
    std::string list = "samples.prompts=[";
    for (int i = 1; i < 30; ++i) {
      const std::string next = "${samples.prompts." + std::to_string(i) + "}";
      list += "\"" + next + next + "\", ";
    }
    return list + "\"" + last + "\"]";
  };
  CHECK(fake::load(file, {prompts("")}).samples.prompts.size() == 30);
  CHECK(has(fake::errors_of(file, {prompts("x")}), "references expand to more than 65536 bytes"));
}

TEST_CASE("unquoted command-line values are taken literally") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  for (const std::string path :
       {"a #b", "a: b",    "it's",   "\"x",   "\"a\" b",       "'a' 'b'", "back\\slash",
        "a b ", "${HOME}", "${a.b}", "$${x}", "[draft] a.txt", "{x} y",   "*a",
        "&a",   "!a",      "%a",     "@a",    "| a",           "> a",     "- a",
        "? a",  "a=b",     "1e3",    "true",  "\u00fc\t",      "# all"}) {
    INFO(path);
    const Experiment e = fake::load(file, {"data.path=" + path, "tokenizer.file=" + path});
    CHECK(value(e.data, "path") == dsv3::OptionValue(path));
    CHECK(value(e.tokenizer, "file") == dsv3::OptionValue(path));
    const Experiment reloaded = fake::load(folder.write("run/config.yaml", e.resolved.yaml()));
    CHECK(value(reloaded.data, "path") == dsv3::OptionValue(path));
    fake::Catalog catalog;
    dsv3::ExperimentRequest request;
    request.file = file;
    request.settings = {{"data.path", path, "a program"}};
    CHECK(value(load_experiment(request, catalog).data, "path") == dsv3::OptionValue(path));
  }
  CHECK(value(fake::load(file, {"data.path='a #b'"}).data, "path") ==
        dsv3::OptionValue(std::string("a #b")));
  CHECK(value(fake::load(file, {"data.path=\"\\u0041\""}).data, "path") ==
        dsv3::OptionValue(std::string("A")));
  CHECK(has(fake::errors_of(file, {"data.path="}), "'path' in data (plugin 'text') has no value"));
}

TEST_CASE("settings passed by a program are type-checked") {
  fake::Folder folder;
  fake::Catalog catalog;
  dsv3::ExperimentRequest request;
  request.file = folder.write("e.yaml", fake::kExperiment);
  request.settings = {{"model.attention.0.plugin", "mha", "p"},
                      {"model.attention.0.layers", "0-1", "p"},
                      {"model.attention.1.plugin", "mla", "p"},
                      {"model.attention.1.layers", "2-", "p"},
                      {"model.vocab", "auto", "p"},
                      {"data.tokenizer", std::monostate(), "p"},
                      {"optimizer", "adamw", "p"},
                      {"optimizer.lr", int64_t{1}, "p"},
                      {"optimizer.betas", std::vector<double>{0.5, 0.25}, "p"}};
  // The experiment's attention is a map, so it has no elements to set.
  CHECK_THROWS_AS(load_experiment(request, catalog), dsv3::ConfigError);
  std::string text = fake::kExperiment;
  const std::string attention = "  attention: {plugin: mla, heads: 4, kv_lora_rank: 16}\n";
  text.erase(text.find(attention), attention.size());
  request.file = folder.write("e.yaml", text);
  const Experiment e = load_experiment(request, catalog);
  REQUIRE(e.attention.size() == 2);
  CHECK(e.attention[0].last == 1);
  CHECK(e.attention[1].component.plugin == "mla");
  CHECK(e.attention[1].component.origin.text() == "p");
  CHECK_FALSE(e.model.vocab.has_value());
  CHECK(e.tokenizer.plugin.empty());
  CHECK(fake::show(e.optimizer.at(0).component.options) ==
        "betas=[0.500000f;0.250000f;] lr=1.000000f");

  request.settings = {{"train.steps", "5", "p"}};
  CHECK_THROWS_WITH(load_experiment(request, catalog), Catch::Contains("must be an integer"));
  request.settings = {{"train.steps", int64_t{0}, "p"}};
  CHECK_THROWS_WITH(load_experiment(request, catalog),
                    Catch::Contains("p: error: 'steps' in train"));
  request.settings = {{"train.step", int64_t{1}, "p"}};
  CHECK_THROWS_WITH(load_experiment(request, catalog), Catch::Contains("did you mean 'steps'?"));
}
