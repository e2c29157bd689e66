// Tests the exchange of training and evaluation weights, and their checkpoints.
#include "train/evaluation_weights.h"

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>

#include "core/optim/groups.h"
#include "core/support/temporary_folder.h"

namespace dsv3::test {
namespace {

using Catch::Contains;

/// Gradient descent. The evaluation weights are half the sum of all weights so far, or, if
/// `averages` is false, the weights that are trained.
class Averaging final : public Optimizer {
 public:
  explicit Averaging(bool averages, bool whole = false) : averages_(averages), whole_(whole) {}
  bool whole_matrices() const override { return whole_; }
  double lr() const override { return 1; }
  std::vector<StateSlot> slots() const override { return {{"sum", StateSlot::Like::value}}; }
  void step(std::span<const Slice> slices, const OptimStep&) override {
    for (const Slice& slice : slices) slice.state[0].add_(slice.value.sub_(slice.grad));
  }
  bool has_evaluation_weights() const override { return averages_; }
  at::Tensor evaluation_weights(const Slice& slice) const override {
    if (wrong_shape) return slice.state[0].flatten().narrow(0, 0, 1);
    return slice.state[0] / 2;
  }

  bool wrong_shape = false;

 private:
  bool averages_, whole_;
};

/// Matrices have evaluation weights. Other parameters do not.
struct Run {
  Run(const std::string& name, at::ScalarType dtype)
      : strategy(strategy_with(parameters, set, name, dtype)) {
    set.bind(*strategy);
  }
  void step() {
    strategy->begin_microbatch(true);
    strategy->enter(0, {});
    at::Tensor loss = at::zeros({});
    for (const Parameter& p : parameters)
      loss = loss + (p.tensor.flatten() * at::arange(p.tensor.numel()).div(7)).sum();
    strategy->leave(0, {&loss});
    strategy->backward({loss});
    set.step(*strategy, {++updates, 1});
    strategy->end_step();
  }
  /// Returns the master weights and the weights that the forward pass uses, by parameter.
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> weights() const {
    std::map<std::string, std::pair<at::Tensor, at::Tensor>> all;
    for (const OwnedTensor& owned : strategy->owned())
      all[owned.range.name].first = owned.value.clone();
    strategy->enter(0, {});
    for (const Parameter& p : parameters) all[p.name].second = p.tensor.detach().clone();
    strategy->leave(0, {});
    return all;
  }
  void require_weights(const std::map<std::string, std::pair<at::Tensor, at::Tensor>>& expected) {
    for (const auto& [name, pair] : weights()) {
      INFO(name);
      CHECK(at::equal(pair.first, expected.at(name).first));
      CHECK(at::equal(pair.second, expected.at(name).second));
    }
  }

  std::vector<Parameter> parameters = some_parameters();
  std::shared_ptr<Averaging> averaging = std::make_shared<Averaging>(true, /*whole=*/true);
  OptimizerSet set{{member("averaging", averaging, {"matrix"}),
                    member("rest", std::make_shared<Averaging>(false))},
                   parameters};
  std::shared_ptr<Strategy> strategy;
  int64_t updates = 0;
};

TEST_CASE("evaluation weights replace training weights while EvaluationWeights exists") {
  const auto [name, dtype] =
      GENERATE(table<std::string, at::ScalarType>({{"single", at::kFloat},
                                                   {"single", at::kBFloat16},
                                                   {"flat", at::kFloat},
                                                   {"flat", at::kBFloat16}}));
  Run run(name, dtype);
  const auto initial = run.weights();
  {
    const EvaluationWeights weights(*run.strategy, run.set, run.updates);
    run.require_weights(initial);
  }
  run.step();
  const auto first = run.weights();
  run.step();
  const auto training = run.weights();
  auto evaluation = training;
  for (const Parameter& p : run.parameters)
    if (p.spec.role == Role::matrix) {
      const at::Tensor mean = (first.at(p.name).first + training.at(p.name).first) / 2;
      evaluation[p.name] = {mean, mean.to(dtype)};
    }
  CHECK_FALSE(at::equal(evaluation.at("layers.0.attention.q.weight").first,
                        training.at("layers.0.attention.q.weight").first));
  {
    const EvaluationWeights weights(*run.strategy, run.set, run.updates);
    run.require_weights(evaluation);
  }
  run.require_weights(training);
  try {
    const EvaluationWeights weights(*run.strategy, run.set, run.updates);
    throw std::runtime_error("validation failed");
  } catch (const std::runtime_error&) {
  }
  run.require_weights(training);
}

TEST_CASE("evaluation weights do not change training") {
  Run with("single", at::kBFloat16), without("single", at::kBFloat16);
  for (int i = 0; i < 3; ++i) {
    with.step();
    const EvaluationWeights weights(*with.strategy, with.set, with.updates);
    without.step();
  }
  with.require_weights(without.weights());
}

TEST_CASE("the strategy is not called if no optimizer has evaluation weights") {
  const auto parameters = some_parameters();
  OptimizerSet set({member("rest", std::make_shared<Averaging>(false))}, parameters);
  // update() fails before ready().
  const auto strategy = make_built<Strategy>(Kind::strategy, "single", {}, StrategyContext{});
  const EvaluationWeights weights(*strategy, set, 1);
  CheckpointContent content;
  save_evaluation_weights(*strategy, set, 1, content);
  CHECK(content.tensors.empty());
}

TEST_CASE("evaluation weights must be like the training weights") {
  Run run("single", at::kFloat);
  run.step();
  run.averaging->wrong_shape = true;
  CHECK_THROWS_WITH(
      EvaluationWeights(*run.strategy, run.set, run.updates),
      Contains("[4, 4]") && Contains("returned [1]") && Contains("layers.0.attention.q.weight"));
}

/// Adds everything that a checkpoint with evaluation weights contains.
void save(Run& run, CheckpointContent& content) {
  save_parameters(*run.strategy, content);
  run.set.save(content);
  save_evaluation_weights(*run.strategy, run.set, run.updates, content);
}

TEST_CASE("a model is loaded with its evaluation weights, and a run resumes with its own") {
  Run run("single", at::kFloat);
  run.step();
  run.step();
  CheckpointContent content{.step = 2};
  content.state = {{"config", ""}, {"conventions", Json::object()}, {"tokenizer", Json()}};
  save(run, content);
  const TemporaryFolder temporary;
  std::filesystem::create_directory(temporary / "checkpoints");
  const StoredCheckpoint checkpoint = write_checkpoint(temporary / "checkpoints/step-2", content);

  const std::string matrix = "model/layers.1.experts.up.weight", vector = "model/head.weight";
  const auto element = [](const StoredModel& stored, const std::string& key) {
    return stored.tensors.whole(key).flatten()[7].item<float>();
  };
  // Gradients are 0, 1/7, ..., so that element 7 of all weights is 1, 0, -1.
  const StoredModel resumed = stored_model_of(checkpoint);
  CHECK(element(resumed, matrix) == -1);
  CHECK(element(resumed, vector) == -1);
  for (const std::filesystem::path& path : {checkpoint.folder, temporary.path()}) {
    const StoredModel stored = open_stored_model(path, built_plugins());
    CHECK(element(stored, matrix) == -0.5);
    CHECK(element(stored, vector) == -1);
  }

  Run second("single", at::kFloat);
  second.set.load(resumed.tensors);
  load_parameters(*second.strategy, resumed.tensors);
  second.strategy->loaded();
  second.updates = run.updates;
  {
    // The strategy has no gradients yet.
    const EvaluationWeights a(*run.strategy, run.set, run.updates);
    const EvaluationWeights b(*second.strategy, second.set, second.updates);
    second.require_weights(run.weights());
  }
  run.step();
  second.step();
  second.require_weights(run.weights());
}

TEST_CASE("checkpoints have evaluation weights of the optimizers that have them") {
  Run run("single", at::kFloat);
  CheckpointContent initial, content;
  save(run, initial);
  for (const auto& [key, view] : initial.tensors) CHECK_FALSE(key.starts_with("evaluation/"));
  run.step();
  save(run, content);
  std::vector<std::string> keys;
  for (const auto& [key, view] : content.tensors)
    if (key.starts_with("evaluation/")) keys.push_back(key);
  CHECK(keys == std::vector<std::string>{"evaluation/layers.0.attention.q.weight",
                                         "evaluation/layers.1.experts.up.weight"});
}

}  // namespace
}  // namespace dsv3::test
