// A table of invalid experiments and their error messages.
#include <catch2/catch.hpp>

#include "fake.h"

namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != text.npos);
  return text.replace(at, from.size(), to);
}

struct Invalid {
  const char* from;  // in fake::kExperiment
  const char* to;
  const char* expected;  // part of the error message
};

const Invalid kInvalid[] = {
    {"kv_lora_rank: 16", "kv_lora_rnk: 16",
     "e.yaml:8:38: error: unknown key 'kv_lora_rnk' in model.attention (plugin 'mla')\n"
     "  8 |   attention: {plugin: mla, heads: 4, kv_lora_rnk: 16}\n"
     "    |                                      ^~~~~~~~~~~\n"
     "  note: did you mean 'kv_lora_rank'?"},
    {"plugin: mla", "plugin: mha",
     "error: unknown key 'kv_lora_rank' in model.attention (plugin 'mha')\n"
     "  8 |   attention: {plugin: mha, heads: 4, kv_lora_rank: 16}\n"
     "    |                                      ^~~~~~~~~~~~\n"
     "  note: 'kv_lora_rank' is an option of 'mla', not of 'mha'"},
    {"plugin: mla", "plugin: mlaa",
     "e.yaml:8:23: error: unknown attention plugin 'mlaa'\n"
     "  8 |   attention: {plugin: mlaa, heads: 4, kv_lora_rank: 16}\n"
     "    |                       ^~~~\n"
     "  note: did you mean 'mla'? known: mha, mla; looked in: the table"},
    {"heads: 4", "wonderful: 4",
     "note: known keys: heads, kv_lora_rank, qk_rope_dim, init_scale, library, layers"},
    {"heads: 4", "heads: four",
     "error: 'heads' in model.attention (plugin 'mla') must be an integer, got 'four'"},
    {"heads: 4", "heads: \"4\"", "note: a value in quotes is a string"},
    {"heads: 4", "heads: 4.5", "must be an integer, got '4.5'"},
    {"heads: 4", "heads: 99999999999999999999", "must be an integer"},
    {"heads: 4", "heads: 0", "must be at least 1, got '0'"},
    {"heads: 4", "heads: [4]", "must be an integer"},
    {"heads: 4", "heads:", "has no value"},
    {"heads: 4", "qk_rope_dim: 5",
     "error: model.attention (plugin 'mla'): qk_rope_dim must be even"},
    {"theta: 1e4", "theta: nan", "must be a number, got 'nan'"},
    {"theta: 1e4", "layout: halvs", "must be one of interleaved, halves, got 'halvs'"},
    {"theta: 1e4", "layout: halvs", "note: did you mean 'halves'?"},
    {"scales: [1, 2.5]", "scales: 1", "must be a list of numbers"},
    {"scales: [1, 2.5]", "scales: [1, x]",
     "an element of 'scales' in model.feed_forward.1 (plugin 'moe') must be a number, got 'x'"},
    {"hidden: 64", "hiden: 64", "e.yaml:4:3: error: unknown key 'hiden' in model\n"},
    {"hidden: 64", "seed: 64", "note: did you mean train.seed?"},
    {"hidden: 64", "every: 64",
     "note: did you mean validation.every, samples.every or checkpoint.every?"},
    {"strategy: single", "attention: mha", "note: did you mean model.attention?"},
    {"strategy: single", "", "error: strategy is not set"},
    {"strategy: single", "strategy: {stage: 1}", "error: strategy has no plugin"},
    {"strategy: single", "strategy: [single]", "error: strategy must be a single component"},
    {"strategy: single", "strategy: {plugin: zero, stage: 4}", "must be at most 3"},
    {"layers: 1-3", "layers: 2-3", "error: model.feed_forward leaves out layer 1\n"},
    {"layers: 1-3", "layers: 0-3", "error: model.feed_forward includes layer 0 twice"},
    {"layers: 1-3", "layers: 1-4",
     "error: model.feed_forward includes layer 4, which the model does not have"},
    {"layers: 1-3", "layers: 1-2", "error: model.feed_forward leaves out layer 3\n"},
    {"layers: 1-3", "layers: 3-1", "must be a layer index or an ascending range, got '3-1'"},
    {"layers: 1-3, ", "", "has no `layers`"},
    {"role: matrix", "role: matrx", "error: unknown role 'matrx' in optimizer.1"},
    {"role: matrix", "match: '('", "is not a regular expression"},
    {"steps: 20", "steps: 20, tokens: 1e6",
     "error: train has both 'steps' and 'tokens'; only one may be set"},
    {"steps: 20, ", "", "error: train needs 'steps' or 'tokens'"},
    {"micro_batch: 4", "micro_batch: 3",
     "error: train: batch (8) must be a multiple of micro_batch (3)"},
    {"path: some/where.txt, ", "", "error: 'path' is missing in data (plugin 'text')"},
    {"file: t.json", "fil: t.json", "unknown key 'fil' in data.tokenizer (plugin 'bpe')"},
    {"validation: {every: 10}", "validation: 10",
     "error: 'validation' must be a map of keys and values"},
    {"depth: 1", "input: norm", "must be one of normed, raw"},
    {"name: tiny", "name: ../tiny", "name must consist of 1 to 128 letters"},
    {"name: tiny", "name: ${nam}", "error: 'nam' is not set in this experiment"},
    {"name: tiny", "name: ${env:DSV3_NOT_SET}",
     "error: environment variable 'DSV3_NOT_SET' is not set"},
    {"name: tiny", "name: ${samples.prompts.2}", "refers to itself"},
    {"name: tiny", "name: ${model}", "error: 'model' is not a single value"},
    {"name: tiny", "name: ${model", "error: '${' without '}'"},
    {"dsv3: 1\n", "", "error: the key 'dsv3' is missing"},
    {"dsv3: 1", "dsv3: 2", "unsupported experiment format; this dsv3 reads format 1"},
    {"dsv3: 1", "dsv3: 1\nextends: none.yaml", "none.yaml': no such file"},
    {"dsv3: 1", "dsv3: 1\nextends: e.yaml", "e.yaml:2:10: error: a file cannot extend itself"},
    {"dsv3: 1", "dsv3: 1\nplugin_paths: [x]", "error: 'plugin_paths' is a machine default"},
    {"hidden: 64", "conventions: torchtitan",
     "e.yaml:4:16: error: 'model.conventions' is no longer supported"},
    {"hidden: 64", "conventions: torchtitan", "extends: conventions/torchtitan.yaml"},
    {"hidden: 64", "conventions: deepseek", "note: remove it: the defaults are DeepSeek's"},
    {"dsv3: 1", "dsv3: 1\nconventions: 3", "'conventions' must be a map"},
    {"dsv3: 1", "dsv3: 1\nconventions: {model.mtp.inputs: raw}", "did you mean 'model.mtp.input'?"},
    {"dsv3: 1", "dsv3: 1\nconventions: {model.mtp.input: rw}",
     "e.yaml:2:32: error: 'input' in model.mtp must be one of normed, raw, got 'rw'"},
    {"dsv3: 1", "dsv3: 1\nconventions: {model.hidden: 3}",
     "error: unknown convention 'model.hidden'"},
    {"dsv3: 1", "dsv3: 1\nconventions: {attention.mlaa.heads: 3}", "error: unknown convention"},
    {"dsv3: 1", "dsv3: 1\nconventions: {model: {norm: {plaice: pre}}}",
     "e.yaml:2:30: error: unknown convention 'model.norm.plaice'"},
    {"dsv3: 1", "dsv3: 1\nconventions: {feed_forward.moe.top_k: 3}",
     "note: conventions of this experiment: feed_forward.moe.centring,"},
};

}  // namespace

TEST_CASE("every invalid experiment is rejected with the expected message") {
  fake::Folder folder;
  REQUIRE(fake::errors_of(folder.write("good.yaml", fake::kExperiment)) == "");
  for (const Invalid& invalid : kInvalid) {
    const auto file = folder.write("e.yaml", replaced(fake::kExperiment, invalid.from, invalid.to));
    const std::string error = folder.shorten(fake::errors_of(file));
    INFO(invalid.from << " -> " << invalid.to << "\n" << error);
    CHECK(has(error, invalid.expected));
  }
}

TEST_CASE("all errors are reported together, in the order of their source locations") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", R"(dsv3: 1
model: {hidden: x, attention: {plugin: mla, hedas: 3}, feed_forward: nothing, position: rope}
optimizer: adamw
schedule: cosine
strategy: single
data: synthetic
train: {steps: -1}
)");
  try {
    fake::load(file);
    FAIL("accepted");
  } catch (const dsv3::ConfigError& error) {
    CHECK(error.count == 4);
    CHECK(error.code() == dsv3::ExitCode::usage);
    const std::string text = error.what();
    const size_t first = text.find("'hidden' in model"), second = text.find("'hedas'"),
                 third = text.find("'nothing'"), fourth = text.find("'steps' in train");
    CHECK(first < second);
    CHECK(second < third);
    CHECK(third < fourth);
    CHECK(fourth != text.npos);
  }
}

TEST_CASE("errors in command-line overrides show the argument") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  CHECK(fake::errors_of(file, {"model.attention.heds=4"}) ==
        "command line: error: unknown key 'heds' in model.attention (plugin 'mla')\n"
        "  model.attention.heds=4\n"
        "                  ^~~~\n"
        "  note: did you mean 'heads'?");
  CHECK(has(fake::errors_of(file, {"atention=mha"}), "did you mean model.attention?"));
  CHECK(fake::errors_of(file, {"train.steps=many"}) ==
        "command line: error: 'steps' in train must be an integer, got 'many'\n"
        "  train.steps=many\n"
        "              ^~~~");
  CHECK(has(fake::errors_of(file, {"train.steps"}), "error: expected key=value"));
  CHECK(has(fake::errors_of(file, {"train..steps=1"}), "error: expected key=value"));
  CHECK(fake::errors_of(file, {"train.steps=["}) ==
        "command line: error: not valid YAML: '[' without ']'\n"
        "  train.steps=[\n"
        "              ^");
  CHECK(
      has(fake::errors_of(file, {"optimizer.lr=1"}), "error: optimizer is a list of 2 components"));
  CHECK(has(fake::errors_of(file, {"optimizer.2.lr=1"}), "error: optimizer has no element 2"));
  CHECK(
      has(fake::errors_of(file, {"train.steps=1", "train.tokens=5"}), "both 'steps' and 'tokens'"));
  CHECK(has(fake::errors_of(file, {"strategy=muon"}), "unknown strategy plugin 'muon'"));
}

TEST_CASE("a configuration layer that changes a plugin may set only options of the new plugin") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", fake::kExperiment);
  const std::string note = "'kv_lora_rank' is an option of 'mla', not of 'mha'";
  CHECK(has(fake::errors_of(file, {"attention=mha", "model.attention.kv_lora_rank=3"}), note));
  CHECK(has(fake::errors_of(file, {"model.attention.kv_lora_rank=3", "attention=mha"}), note));
  // A key that is not an option of any plugin is an error, whether or not the plugin changes.
  const auto typo =
      folder.write("typo.yaml", replaced(fake::kExperiment, "kv_lora_rank", "kv_rank"));
  CHECK(has(fake::errors_of(typo, {"attention=mha"}), "unknown key 'kv_rank'"));
}

TEST_CASE("the error for a plugin that cannot be loaded states where the plugin was requested") {
  fake::Folder folder;
  const auto file = folder.write("e.yaml", replaced(fake::kExperiment, "mla", "broken"));
  try {
    fake::load(file);
    FAIL("accepted");
  } catch (const dsv3::Error& error) {
    CHECK(error.code() == dsv3::ExitCode::plugin);
    CHECK(folder.shorten(error.what()) == "cannot load 'broken'\n  requested by e.yaml:8:23");
  }
}

TEST_CASE("error messages never contain secrets from the environment") {
  fake::Folder folder;
  ::setenv("DSV3_TEST_SECRET", "hunter2", 1);
  const auto file = folder.write(
      "e.yaml", replaced(fake::kExperiment, "steps: 20", "steps: \"${env:DSV3_TEST_SECRET}\""));
  const std::string error = fake::errors_of(file);
  CHECK(has(error, "must be an integer, got '${env:DSV3_TEST_SECRET}'"));
  CHECK_FALSE(has(error, "hunter2"));
}

TEST_CASE("errors for missing and unreadable files name the file") {
  CHECK(has(fake::errors_of("/nowhere/e.yaml"), "cannot read '/nowhere/e.yaml': no such file"));
  CHECK(has(fake::errors_of("/"), "cannot read '/': it is a folder"));
}
