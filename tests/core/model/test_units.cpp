// Tests how a model calls its strategy, and how its parameters are named, counted and grouped into
// parameter units.
#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include "tiny.h"

namespace dsv3::test {
namespace {

using torch::autograd::variable_list;

struct Callback final : torch::autograd::Node {
  std::function<void()> call;
  variable_list apply(variable_list&& grads) override {
    call();
    return std::move(grads);
  }
};

/// Attaches an autograd node to the tensors. The node runs `call` in the backward pass.
void attach(TensorRefs tensors, std::function<void()> call) {
  variable_list inputs;
  for (at::Tensor* tensor : tensors)
    if (tensor->defined()) inputs.push_back(*tensor);
  if (!torch::autograd::compute_requires_grad(inputs)) return;
  std::shared_ptr<Callback> node(new Callback, torch::autograd::deleteNode);
  node->call = std::move(call);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (at::Tensor* tensor : tensors) {
    if (!tensor->defined()) continue;
    *tensor = tensor->detach();
    const uint32_t slot = node->add_input_metadata(*tensor);
    torch::autograd::impl::set_gradient_edge(*tensor, {node, slot});
  }
}

/// A strategy that sets a unit's parameters to NaN except between its enter() and leave() calls, in
/// the forward and the backward pass.
class PoisonStrategy final : public Strategy {
 public:
  int adopt(UnitSpec spec) override {
    Unit unit;
    for (const UnitParam& parameter : spec.params)
      unit.values.push_back(parameter.tensor.detach().clone());
    unit.spec = std::move(spec);
    units_.push_back(std::move(unit));
    close(int(units_.size()) - 1);
    return int(units_.size()) - 1;
  }
  void enter(int unit, TensorRefs inputs) override {
    log_.push_back("enter " + units_[unit].spec.name);
    open(unit);
    attach(inputs, [this, unit] { close(unit); });
  }
  void leave(int unit, TensorRefs outputs) override {
    log_.push_back("leave " + units_[unit].spec.name);
    close(unit);
    if (!units_[unit].spec.needed_in_backward) return;
    // The backward pass does not read an untied embedding. Its enter() call has no input tensors,
    // so there is no autograd node that could set its parameters to NaN again.
    attach(outputs, [this, unit] { open(unit); });
  }
  void backward(at::TensorList roots, at::TensorList) override {
    torch::autograd::backward(roots.vec(), {});
  }
  void ready(const std::vector<GroupSpec>&) override {}
  void begin_microbatch(bool) override {}
  at::Tensor grad_norm() override { return at::zeros({}, at::kDouble); }
  void scale_grads(const at::Tensor&) override {}
  void update(int, const std::function<void(std::span<UpdateTensor>)>&) override {}
  void end_step() override {}
  std::vector<Range> update_ranges(int) const override { return {}; }
  std::vector<OwnedTensor> owned() override { return {}; }
  void loaded() override {}
  Cost estimate(const ModelPlan&, int) const override { return {}; }

  const std::vector<std::string>& log() const { return log_; }

 private:
  struct Unit {
    UnitSpec spec;
    std::vector<at::Tensor> values;
    int uses = 0;
  };
  // Copies without incrementing autograd's version counter, as strategies that refill a tensor's
  // storage do.
  static void copy(const at::Tensor& to, const at::Tensor& from) {
    std::memcpy(to.data_ptr(), from.data_ptr(), from.nbytes());
  }
  void open(int index) {
    Unit& unit = units_[index];
    if (unit.uses++ > 0) return;
    for (size_t i = 0; i < unit.values.size(); ++i)
      copy(unit.spec.params[i].tensor, unit.values[i]);
  }
  void close(int index) {
    Unit& unit = units_[index];
    if (--unit.uses > 0) return;
    unit.uses = 0;
    for (size_t i = 0; i < unit.values.size(); ++i)
      copy(unit.spec.params[i].tensor, at::full_like(unit.values[i], NAN));
  }

  std::vector<Unit> units_;
  std::vector<std::string> log_;
};

TEST_CASE("a model reads a unit's parameters only between enter() and leave()") {
  Experiment experiment = tiny_experiment();
  experiment.model.recompute = GENERATE("none", "full");
  experiment.model.tied_head = GENERATE(false, true);
  experiment.mtp.input = GENERATE("normed", "raw");
  const Batch batch = tiny_batch();
  const LossScale scale = scale_of(batch, 2);
  const auto plain = tiny_model(experiment, 3);
  const LossParts expected = plain->loss(batch, scale);
  torch::autograd::backward({expected.total}, {});

  Model model(experiment, tiny_vocab, tiny_factory(), at::kCPU);
  PoisonStrategy strategy;
  model.adopt(strategy, 3, [](const Parameter&) { return 0; });
  const LossParts actual = model.loss(batch, scale);
  strategy.backward({actual.total}, {});
  CHECK(at::equal(actual.total, expected.total));
  CHECK(equal_bits(gradients(model), gradients(*plain)));

  CHECK(model.evaluate(batch) == plain->evaluate(batch));
  CHECK(at::equal(model.logits(batch.tokens), plain->logits(batch.tokens)));
  std::vector<KvCache> caches = model.make_caches(1), others = plain->make_caches(1);
  const NewTokens added{{5, 1, 7}, {3}, {0, 2}};
  const Extended actual_next = model.extend(added, caches),
                 expected_next = plain->extend(added, others);
  CHECK(at::equal(actual_next.logits, expected_next.logits));
  for (size_t k = 0; k < 2; ++k)
    CHECK(at::equal(model.extend_mtp(k, added, actual_next.hidden, caches).logits,
                    plain->extend_mtp(k, added, expected_next.hidden, others).logits));
}

TEST_CASE("a model enters its parameter units in the documented order") {
  Experiment experiment = tiny_experiment();
  experiment.mtp.depth = 1;
  Model model(experiment, tiny_vocab, tiny_factory(), at::kCPU);
  PoisonStrategy strategy;
  model.adopt(strategy, 3, [](const Parameter&) { return 0; });
  const Batch batch = tiny_batch();
  model.loss(batch, scale_of(batch, 1));
  std::vector<std::string> expected;
  for (const char* unit :
       {"embedding", "layers.0", "layers.1", "head", "embedding", "layers.2", "head"}) {
    expected.push_back(std::string("enter ") + unit);
    expected.push_back(std::string("leave ") + unit);
  }
  CHECK(strategy.log() == expected);
}

TEST_CASE("a model lists the uses of its units in order") {
  Experiment experiment = tiny_experiment();
  experiment.mtp.depth = 2;
  experiment.model.tied_head = GENERATE(false, true);
  Model model(experiment, tiny_vocab, tiny_factory(), at::kCPU);
  const auto one_group = [](const Parameter&) { return 0; };
  std::vector<std::string> expected;
  for (const UnitUse& use : model.uses())
    expected.push_back("leave " + model.units(one_group)[use.unit].name);
  PoisonStrategy strategy;
  model.adopt(strategy, 3, one_group);
  const Batch batch = tiny_batch();
  model.loss(batch, scale_of(batch, 1));
  std::vector<std::string> left;
  for (const std::string& call : strategy.log())
    if (call.starts_with("leave ")) left.push_back(call);
  CHECK(left == expected);
}

TEST_CASE("a model's parameter units contain every parameter once, with the documented names") {
  Experiment experiment = tiny_experiment();
  experiment.mtp.depth = 1;
  experiment.norm.place = "both";
  Model model(experiment, tiny_vocab, tiny_factory(), at::kMeta);
  const auto units = model.units([](const Parameter& p) { return p.spec.role == Role::matrix; });
  std::vector<std::string> names, unit_names;
  for (const UnitSpec& unit : units) {
    unit_names.push_back(unit.name);
    for (const UnitParam& parameter : unit.params) {
      names.push_back(parameter.name);
      CHECK(parameter.tensor.is_meta());
      CHECK(parameter.global_shape == parameter.tensor.sizes().vec());
      CHECK(parameter.group == int(parameter.tensor.dim() == 2 && parameter.name != "head.weight" &&
                                   parameter.name != "embedding.weight"));
    }
  }
  CHECK(unit_names ==
        std::vector<std::string>{"embedding", "layers.0", "layers.1", "layers.2", "head"});
  CHECK_FALSE(units.front().needed_in_backward);
  CHECK(units.back().needed_in_backward);
  std::vector<std::string> expected{"embedding.weight"};
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    if (layer == 2)
      for (const char* name : {"embedding_norm", "hidden_norm", "projection"})
        expected.push_back(prefix + name + ".weight");
    for (const char* name : {"attention_norm", "attention.q", "attention.k", "attention.v",
                             "attention.o", "attention_post_norm", "feed_forward_norm",
                             "feed_forward.up", "feed_forward.down", "feed_forward_post_norm"})
      expected.push_back(prefix + name + ".weight");
    if (layer == 2) expected.push_back(prefix + "final_norm.weight");
  }
  expected.push_back("final_norm.weight");
  expected.push_back("head.weight");
  CHECK(names == expected);
}

TEST_CASE("a parameter's initial values do not depend on the rest of the model") {
  Experiment small = tiny_experiment(), large = tiny_experiment();
  large.model.layers = 4;
  large.norm.place = "both";
  large.model.tied_head = true;
  const auto a = tiny_model(small, 9), b = tiny_model(large, 9), other = tiny_model(small, 10);
  const Named in_large = values(*b), in_other = values(*other);
  int shared = 0;
  for (const auto& [name, tensor] : values(*a)) {
    if (name.starts_with("layers.2") || name.starts_with("layers.3") || !in_large.count(name))
      continue;
    ++shared;
    CHECK(at::equal(tensor, in_large.at(name)));
    if (name.find("norm") == std::string::npos) CHECK_FALSE(at::equal(tensor, in_other.at(name)));
  }
  CHECK(shared == 18);
}

TEST_CASE("parameter and FLOP counts match the formulas") {
  Experiment experiment = tiny_experiment();
  experiment.model.tied_head = GENERATE(false, true);
  experiment.mtp.depth = 1;
  Model model(experiment, tiny_vocab, tiny_factory(), at::kMeta);
  const ModelFigures actual = figures(model, experiment, tiny_factory());
  const int64_t d = 12, v = tiny_vocab, layers = 2;
  const int64_t attention = 4 * d * d, up = 2 * d * d, down = 2 * d * d, norms = 2 * d;
  const int64_t block = attention + up + down + norms;
  const int64_t mtp = block + 2 * d * d + 3 * d, head = experiment.model.tied_head ? 0 : v * d;
  CHECK(actual.total == v * d + layers * block + mtp + d + head);
  CHECK(actual.total_without_embeddings == layers * block + d);
  CHECK(actual.active_without_embeddings == double(layers * (block - up / 2) + d));
  // The reference layers multiply all of `up`, and compute the scores of all pairs of tokens.
  const double matrices = (layers + 1.0) * (attention + up + down) + 2.0 * d * d + 2.0 * v * d;
  const double scores = 3.0 * (layers + 1) * 4 * 8 * d;
  CHECK(actual.flops_unknown == "");
  CHECK(actual.flops_per_token == Approx(6 * matrices + scores));
  CHECK(actual.flops_per_token_causal == Approx(6 * matrices + scores));
  int64_t total = 0;
  std::vector<std::string> names;
  for (const ModelFigures::Part& part : actual.parts) {
    total += part.total;
    names.push_back(part.name);
  }
  CHECK(total == actual.total);
  CHECK(names ==
        std::vector<std::string>{"embedding", "attention", "feed_forward", "norms", "head", "mtp"});
  experiment.model.recompute = "full";
  CHECK(figures(model, experiment, tiny_factory()).flops_per_token == actual.flops_per_token);
}

TEST_CASE("a parameter or buffer name cannot be declared twice") {
  ParameterStore store;
  store.add("a.weight", {2, 2}, {}, at::kFloat, at::kCPU);
  REQUIRE_THROWS_WITH(store.add("a.weight", {3}, {}, at::kFloat, at::kCPU),
                      Catch::Contains("a.weight"));
  REQUIRE_THROWS_WITH(store.add_buffer("a.weight", {3}, at::kFloat, Init::zeros(), at::kCPU),
                      Catch::Contains("a.weight"));
  CHECK(at::equal(store.add_buffer("b", {2}, at::kFloat, Init::ones(), at::kCPU), at::ones({2})));
  REQUIRE_THROWS_WITH(store.add("c", {3, 2}, {.matrices = 2}, at::kFloat, at::kCPU),
                      Catch::Contains("3 rows"));
}

TEST_CASE("role_name() returns the role names used in experiment files") {
  CHECK(std::string(role_name(Role::matrix)) == "matrix");
  CHECK(std::string(role_name(Role::embedding)) == "embedding");
  CHECK(std::string(role_name(Role::head)) == "head");
  CHECK(std::string(role_name(Role::norm)) == "norm");
  CHECK(std::string(role_name(Role::router)) == "router");
  CHECK(std::string(role_name(Role::bias)) == "bias");
}

}  // namespace
}  // namespace dsv3::test
