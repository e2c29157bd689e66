// Tests the assignment of parameters to optimizers, and optimizer state in checkpoints.
#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/sdk/error.h>

#include "core/optim/groups.h"

namespace dsv3::test {
namespace {

using Catch::Contains;

/// An optimizer that adds `amount` times the learning-rate factor to every value. Its state
/// contains the sum of the gradients and the number of updates.
class Adder final : public Optimizer {
 public:
  Adder(bool whole, double amount) : whole_(whole), amount_(amount) {}
  bool whole_matrices() const override { return whole_; }
  double lr() const override { return amount_; }
  std::vector<StateSlot> slots() const override {
    return {{"sum", StateSlot::Like::value, at::kFloat},
            {"updates", StateSlot::Like::scalar, at::kLong}};
  }
  void step(std::span<const Slice> slices, const OptimStep& step) override {
    for (const Slice& slice : slices) {
      slice.value.add_(amount_ * step.lr_factor);
      slice.state[0].add_(slice.grad);
      slice.state[1].add_(1);
    }
  }

 private:
  bool whole_;
  double amount_;
};

OptimizerMember adder(const std::string& name, std::vector<std::string> roles, std::string match,
                      bool whole = false, double lr = 1) {
  return member(name, std::make_shared<Adder>(whole, lr), std::move(roles), std::move(match));
}

std::string error_of(std::vector<OptimizerMember> members) {
  try {
    OptimizerSet set(std::move(members), some_parameters());
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::usage);
    return error.what();
  }
  FAIL("no error");
  return {};
}

TEST_CASE("a parameter belongs to the first group that matches it") {
  const auto parameters = some_parameters();
  const OptimizerSet set({adder("experts", {"matrix", "head"}, "experts|^head"),
                          adder("matrices", {"matrix"}, "", true), adder("rest", {}, "")},
                         parameters);
  std::vector<int> groups;
  for (const Parameter& p : parameters) groups.push_back(set.group_of(p));
  CHECK(groups == std::vector<int>{2, 1, 2, 0, 0});
  CHECK(set.specs().at(1).whole_matrices);
  CHECK_FALSE(set.specs().at(0).whole_matrices);
  CHECK_THROWS_AS(set.group_of(parameter("other", Role::norm, {2})), Error);
}

TEST_CASE("groups without parameters and parameters without a group are reported together") {
  const std::string text =
      error_of({adder("a", {"matrix"}, ""), adder("b", {"matrix"}, "q"),
                adder("c", {"router", "bias"}, ""), adder("d", {"head"}, "heat")});
  CHECK_THAT(text, Contains("run.yaml:7:3"));
  CHECK_THAT(text, Contains("'b' owns no parameters: all parameters it matches"));
  CHECK_THAT(text, Contains("'c' owns no parameters: no parameter has role router or bias"));
  CHECK_THAT(text, Contains("'d'") && Contains("role head, name matching 'heat'"));
  CHECK_THAT(text, Contains("no optimizer group matches") && Contains("embedding.weight") &&
                       Contains("layers.0.norm.weight (role norm)") && Contains("head.weight"));
  CHECK_THAT(text, !Contains("attention.q"));
}

TEST_CASE("invalid regular expressions, and vectors in a matrix optimizer's group, are errors") {
  CHECK_THAT(error_of({adder("a", {}, "lay(ers")}), Contains("'lay(ers' is not a regular"));
  CHECK_THAT(error_of({adder("m", {}, "", true)}),
             Contains("works on matrices") && Contains("layers.0.norm.weight"));
}

TEST_CASE(
    "the optimizer plan lists groups, learning rates and parameter counts, and optionally every "
    "parameter") {
  const OptimizerSet set(
      {adder("muon", {"matrix"}, "", true, 0.02), adder("adamw", {}, "", false, 3e-4)},
      some_parameters());
  const std::string plan = set.plan(), verbose = set.plan(true);
  CHECK_THAT(plan, Contains("muon") && Contains("0.02") && Contains("112"));
  CHECK_THAT(plan, Contains("adamw") && Contains("0.0003") && Contains("84"));
  CHECK_THAT(plan, !Contains("experts"));
  CHECK_THAT(verbose, Contains("layers.1.experts.up.weight   muon") && Contains("[3, 8, 4]"));
  CHECK(set.learning_rates(0.5) ==
        std::vector<std::pair<std::string, double>>{{"muon", 0.01}, {"adamw", 1.5e-4}});
}

TEST_CASE("a step updates every matrix and vector with its own state") {
  const auto parameters = some_parameters();
  OptimizerSet set({adder("m", {"matrix"}, "", true, 2), adder("r", {}, "", false, 3)}, parameters);
  const int64_t before = set.state_bytes();
  const auto strategy = strategy_with(parameters, set);
  set.bind(*strategy);
  // The state contains one fp32 value per element, and one int64 counter for each of 1 + 6 matrices
  // and 3 other tensors.
  CHECK(set.state_bytes() == 4 * (40 + 16 + 4 + 96 + 40) + 8 * 10);
  CHECK(before == set.state_bytes());
  strategy->begin_microbatch(true);
  strategy->backward(
      {at::stack({parameters[1].tensor.sum(), parameters[2].tensor.sum() * 5}).sum()});
  set.step(*strategy, {1, 0.5});
  CHECK(at::equal(parameters[3].tensor, at::full({3, 8, 4}, 2.0)));
  CHECK(at::equal(parameters[4].tensor, at::full({10, 4}, 2.5)));

  CheckpointContent content;
  set.save(content);
  const auto& views = content.tensors;
  CHECK(views.size() == 2 * 10);
  CHECK(views.at("optimizer/sum/layers.0.norm.weight").shape == std::vector<int64_t>{4});
  CHECK(static_cast<const float*>(views.at("optimizer/sum/layers.0.norm.weight").bytes)[3] == 5);
  CHECK(views.at("optimizer/sum/layers.1.experts.up.weight/48").shape ==
        std::vector<int64_t>{4, 4});
  CHECK(views.at("optimizer/updates/layers.0.attention.q.weight").dtype == "I64");
  CHECK(views.count("optimizer/updates/layers.1.experts.up.weight/80") == 1);
}

/// Applies updates `first` and `first` + 1, with synthetic gradients, to `parameters`.
void train(Strategy& strategy, OptimizerSet& set, const std::vector<Parameter>& parameters,
           int64_t first) {
  for (int64_t update = first; update < first + 2; ++update) {
    strategy.begin_microbatch(true);
    at::Tensor loss = at::zeros({});
    for (const Parameter& p : parameters)
      loss = loss + (p.tensor * at::arange(p.tensor.numel()).view(p.tensor.sizes())).sin().sum();
    strategy.backward({loss});
    set.step(strategy, {update, 1.0 / double(update)});
    strategy.end_step();
  }
}

struct Run {
  std::vector<Parameter> parameters = some_parameters();
  OptimizerSet set;
  std::shared_ptr<Strategy> strategy;
  Run() : set(members(), parameters), strategy(strategy_with(parameters, set)) {
    set.bind(*strategy);
  }
  static std::vector<OptimizerMember> members() {
    return {member("muon", make_built<Optimizer>(Kind::optimizer, "muon", {}), {"matrix"}),
            member("adamw", make_built<Optimizer>(Kind::optimizer, "adamw", {}))};
  }
};

TEST_CASE("training continues bit-identically after loading parameters and optimizer state") {
  Run unbroken, second;
  train(*unbroken.strategy, unbroken.set, unbroken.parameters, 1);
  CheckpointContent content;
  unbroken.set.save(content);
  save_parameters(*unbroken.strategy, content);
  const auto& views = content.tensors;
  CHECK(views.count("model/layers.1.experts.up.weight") == 1);
  second.set.load(views);
  load_parameters(*second.strategy, views);
  second.strategy->loaded();
  train(*unbroken.strategy, unbroken.set, unbroken.parameters, 3);
  train(*second.strategy, second.set, second.parameters, 3);
  for (size_t i = 0; i < unbroken.parameters.size(); ++i)
    CHECK(at::equal(unbroken.parameters[i].tensor, second.parameters[i].tensor));
  Run third;  // without the optimizer state, the values must differ
  load_parameters(*third.strategy, views);
  third.strategy->loaded();
  train(*third.strategy, third.set, third.parameters, 3);
  CHECK_FALSE(at::equal(unbroken.parameters[0].tensor, third.parameters[0].tensor));
}

TEST_CASE(
    "the error for optimizer state that is missing or has a wrong shape or dtype names the "
    "tensor") {
  Run run;
  CheckpointContent content;
  run.set.save(content);
  save_parameters(*run.strategy, content);
  auto& views = content.tensors;
  const std::string key = "optimizer/exp_avg/head.weight";
  const auto check = [&](const std::map<std::string, safetensors::View>& wrong,
                         const std::string& words) {
    try {
      run.set.load(wrong);
      FAIL("no error");
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::checkpoint);
      CHECK_THAT(error.what(), Contains(key) && Contains(words));
    }
  };
  auto wrong = views;
  wrong.erase(key);
  check(wrong, "has no");
  wrong = views;
  wrong.at(key).shape = {10, 4};
  check(wrong, "[10, 4]");
  wrong = views;
  wrong.at(key).dtype = "I32";
  check(wrong, "I32");
  views.erase("model/head.weight");
  CHECK_THROWS_WITH(load_parameters(*run.strategy, views), Contains("model/head.weight"));
}

}  // namespace
}  // namespace dsv3::test
