// Tests that training with every strategy, on any number of ranks, equals training on one.
#include <cstdlib>

#include <catch2/catch.hpp>

#include "training.h"

namespace dsv3::test {
namespace {

struct Deployment {
  std::string strategy;
  OptionValues options;
  int64_t ranks;
};

OptionValues zero(int64_t stage, int64_t shard = 0) {
  return {{"stage", stage}, {"shard", shard}};
}

std::vector<Deployment> deployments() {
  std::vector<Deployment> all;
  for (const int64_t ranks : {2, 4}) {
    all.push_back({"ddp", {}, ranks});
    for (const int64_t stage : {1, 2, 3}) all.push_back({"zero", zero(stage), ranks});
  }
  for (const int64_t stage : {1, 2, 3}) all.push_back({"zero", zero(stage, 2), 4});
  return all;
}

/// Seeds with which no token's choice of experts is close (see Result::margin).
uint64_t seed_of(bool muon, bool tied) {
  if (muon) return tied ? 1 : 48;
  return tied ? 49 : 7;
}

Setup setup_of(const Deployment& deployment, unsigned bits) {
  return {.strategy = deployment.strategy,
          .options = deployment.options,
          .ranks = deployment.ranks,
          .muon = (bits & 1) != 0,
          .tied = (bits & 2) != 0,
          .recompute = (bits & 4) != 0,
          .accumulate = (bits & 8) != 0 ? 4 : 1,
          .seed = seed_of((bits & 1) != 0, (bits & 2) != 0)};
}

/// The same model and data on one rank, computed once.
const Result& expected(const Setup& setup) {
  static std::map<std::pair<bool, bool>, Result> results;
  const std::pair key(setup.muon, setup.tied);
  if (!results.contains(key))
    results[key] = train({.muon = setup.muon, .tied = setup.tied, .seed = setup.seed});
  return results.at(key);
}

void require_once(const std::map<std::string, at::Tensor>& counts) {
  for (const auto& [name, count] : counts) {
    CAPTURE(name);
    CHECK(count.eq(1).all().item<bool>());
  }
}

TEST_CASE("training on several ranks equals training on one") {
  const char* const campaign = std::getenv("DSV3_TEST_FULL");
  const bool full = campaign && std::string_view(campaign) == "1";
  const std::vector<Deployment> all = deployments();
  for (size_t i = 0; i < all.size(); ++i)
    for (unsigned bits = 0; bits < 16; ++bits) {
      // A pattern and its complement cover each pair of a deployment and a setting.
      const auto pattern = unsigned(i % 8);
      if (!full && bits != pattern && bits != 15 - pattern) continue;
      const Setup setup = setup_of(all[i], bits);
      INFO(setup.text());
      const Result& single = expected(setup);
      REQUIRE(single.margin > 1e-4);  // so that no rounding error changes the choice of experts
      const Result result = train(setup);
      CHECK(difference(result.losses, single.losses) < 1e-5);
      CHECK(difference(result.norms, single.norms) < 1e-4);
      CHECK(difference(result.weights, single.weights) < 1e-4);
      CHECK(result.covered.size() == single.weights.size());
      CHECK(result.state.size() == single.weights.size());
      require_once(result.covered);
      require_once(result.state);
      CHECK(single.losses.back() < 0.9 * single.losses.front());
    }
}

TEST_CASE("on one rank, every strategy is bit-identical to 'single'") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  for (unsigned bits = 0; bits < 16; ++bits) {
    Setup setup = setup_of({"single", {}, 1}, bits);
    setup.steps = 3;
    setup.dtype = dtype;
    const Result single = train(setup);
    for (const std::string name :
         {"ddp", "zero", "fsdp", "deepspeed_stage_2", "deepspeed_stage_3"}) {
      setup.strategy = name;
      INFO(setup.text());
      CHECK(is_identical(train(setup), single));
    }
  }
}

TEST_CASE("training twice is bit-identical") {
  const std::vector<Deployment> all = deployments();
  const size_t i = GENERATE(0, 3, 4, 6, 7, 10);
  Setup setup = setup_of(all[i], 3);
  setup.steps = 10;
  INFO(setup.text());
  CHECK(is_identical(train(setup), train(setup)));
}

TEST_CASE("without accumulation, all strategies are bit-identical") {
  const int64_t ranks = GENERATE(2, 4);
  const bool muon = GENERATE(false, true);
  Setup setup{.strategy = "ddp", .ranks = ranks, .muon = muon, .steps = 10};
  const Result ddp = train(setup);
  for (const int64_t stage : {1, 2, 3}) {
    setup.strategy = "zero";
    setup.options = zero(stage);
    INFO(setup.text());
    CHECK(is_identical(train(setup), ddp));
  }
}

TEST_CASE("options that move data at other times do not change results") {
  Setup setup{.strategy = "fsdp", .ranks = 2, .recompute = true, .accumulate = 2, .steps = 5};
  const Result expected = train(setup);
  const int64_t none = 0, many = 3;
  const OptionValues variants[] = {{{"reshard_after_forward", false}},
                                   {{"prefetch", none}},
                                   {{"prefetch", many}},
                                   {{"bucket", 0.001}},
                                   {{"freed", std::string("nan")}}};
  for (const OptionValues& options : variants) {
    setup.options = options;
    INFO(setup.text());
    CHECK(is_identical(train(setup), expected));
  }
  setup.strategy = "ddp";
  setup.options = {};
  const Result ddp = train(setup);
  setup.options = {{"bucket", 0.001}};
  CHECK(is_identical(train(setup), ddp));
}

TEST_CASE("gradients sent in bf16 are close to those sent in fp32") {
  Setup setup{.strategy = "zero", .ranks = 2, .steps = 3};
  const Result fp32 = train(setup);
  setup.options = {{"reduce", std::string("bf16")}};
  const Result bf16 = train(setup);
  CHECK_FALSE(is_identical(bf16, fp32));
  CHECK(difference(bf16.norms, fp32.norms) < 1e-2);
  CHECK(difference(bf16.losses, fp32.losses) < 1e-2);
}

TEST_CASE("training in bf16 on two ranks is close to training on one") {
  const std::string strategy = GENERATE("ddp", "fsdp");
  Setup setup{.strategy = strategy, .ranks = 2, .steps = 5, .dtype = at::kBFloat16};
  const Result result = train(setup);
  setup.strategy = "single";
  setup.ranks = 1;
  CHECK(difference(result.losses, train(setup).losses) < 1e-2);
}

TEST_CASE("a group of ranks that does not divide the run is rejected") {
  CHECK_THROWS_WITH(train({.strategy = "zero", .options = zero(2, 3), .ranks = 2, .steps = 1}),
                    Catch::Contains("'shard' is 3, which does not divide the run's 2 rank(s)"));
}

}  // namespace
}  // namespace dsv3::test
