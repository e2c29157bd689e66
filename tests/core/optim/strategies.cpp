// Tests that training with the strategy `single` is bit-identical to plain autograd, and that
// training with the flat-buffer strategy is bit-identical to `single`.
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <catch2/catch.hpp>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/flat.h>

#include "support/built_plugins.h"

namespace dsv3::test {
namespace {

std::shared_ptr<Strategy> strategy(const std::string& name, at::ScalarType dtype = at::kFloat,
                                   const OptionValues& options = {}) {
  StrategyContext context;
  context.compute_dtype = dtype;
  return make_built<Strategy>(Kind::strategy, name, options, context);
}

at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kFloat);
}

UnitParam param(const std::string& name, const at::Tensor& tensor, int group = 0) {
  UnitParam result;
  result.name = name;
  result.tensor = tensor;
  result.tensor.set_requires_grad(true);
  result.global_shape = tensor.sizes().vec();
  result.box_offset.assign(result.global_shape.size(), 0);
  result.group = group;
  return result;
}

const OwnedTensor& owned_named(const std::vector<OwnedTensor>& all, const std::string& name) {
  for (const OwnedTensor& owned : all)
    if (owned.range.name == name) return owned;
  throw std::logic_error("no owned tensor " + name);
}

TEST_CASE("fp32 parameters double as master weights and are aligned to 64 bytes") {
  const auto single = strategy("single");
  const at::Tensor a = random({3, 5}, 1), b = random({7}, 2), a_was = a.clone();
  single->adopt({"unit", {param("a", a), param("b", b)}});
  single->ready({{}});
  const auto owned = single->owned();
  CHECK(at::equal(a, a_was));
  for (const auto& [name, tensor] : {std::pair{"a", a}, {"b", b}}) {
    CHECK(owned_named(owned, name).value.data_ptr() == tensor.data_ptr());
    CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 64 == 0);
    CHECK(tensor.is_leaf());
    CHECK(tensor.requires_grad());
  }
}

TEST_CASE("gradients, their norm and updates equal those of plain autograd") {
  const auto single = strategy("single");
  const at::Tensor a = random({4, 3}, 1), b = random({4}, 2), unused = random({5}, 3);
  const at::Tensor plain_a = a.clone().set_requires_grad(true);
  const at::Tensor plain_b = b.clone().set_requires_grad(true);
  single->adopt({"one", {param("a", a)}});
  single->adopt({"two", {param("b", b), param("unused", unused)}});
  single->ready({{}});
  const auto loss = [](const at::Tensor& a, const at::Tensor& b, int64_t i) {
    return (a.matmul(random({3, 6}, 10 + i)).tanh() * b.unsqueeze(1)).sum();
  };
  for (int64_t step = 0; step < 2; ++step) {
    for (int64_t i = 0; i < 2; ++i) {
      single->begin_microbatch(i == 1);
      single->backward({loss(a, b, 2 * step + i)});
      torch::autograd::backward({loss(plain_a, plain_b, 2 * step + i)}, {});
    }
    const at::Tensor all = at::cat({plain_a.grad().flatten(), plain_b.grad()}).to(at::kDouble);
    CHECK(single->grad_norm().item<double>() == Approx(all.norm().item<double>()).epsilon(1e-12));
    single->scale_grads(at::full({}, 0.5, at::kDouble));
    int seen = 0;
    single->update(0, [&](std::span<UpdateTensor> tensors) {
      for (UpdateTensor& t : tensors) {
        ++seen;
        CHECK(t.value.dim() == 1);
        const at::Tensor expected = t.range.name == "a"   ? plain_a.grad().flatten() * 0.5
                                    : t.range.name == "b" ? plain_b.grad() * 0.5
                                                          : at::zeros({5});
        CHECK(at::equal(t.grad, expected));
        t.value.sub_(t.grad);
      }
    });
    CHECK(seen == 3);
    single->end_step();
    at::NoGradGuard no_grad;
    plain_a.sub_(plain_a.grad() * 0.5);
    plain_b.sub_(plain_b.grad() * 0.5);
    CHECK(at::equal(a, plain_a));
    CHECK(at::equal(b, plain_b));
    plain_a.mutable_grad().zero_();
    plain_b.mutable_grad().zero_();
  }
  CHECK(single->grad_norm().item<double>() == 0);
}

TEST_CASE("computation uses bf16 parameters, but gradients and updates are fp32") {
  const std::string name = GENERATE("single", "flat");
  const auto tested = strategy(name, at::kBFloat16);
  const at::Tensor w = at::ones({2}), full = at::ones({2});
  UnitParam fp32 = param("full", full);
  fp32.keep_fp32 = true;
  const int unit = tested->adopt({"unit", {param("w", w), fp32}});
  tested->ready({{}});
  CHECK(w.scalar_type() == at::kBFloat16);
  CHECK(full.scalar_type() == at::kFloat);
  const auto run = [&](double slope) {
    tested->begin_microbatch(false);
    tested->enter(unit, {});
    at::Tensor loss = (w * slope).sum() + full.sum().to(at::kBFloat16);
    tested->leave(unit, {&loss});
    tested->backward({loss});
  };
  run(256);
  for (int i = 0; i < 3; ++i) run(0.75);  // bf16 cannot represent 256.75
  tested->update(0, [&](std::span<UpdateTensor> tensors) {
    for (UpdateTensor& t : tensors) {
      CHECK(t.value.scalar_type() == at::kFloat);
      CHECK(t.grad[1].item<float>() == (t.range.name == "w" ? 258.25f : 4.0f));
      t.value.add_(1e-4);  // too small to change a bf16 weight
    }
  });
  tested->end_step();
  CHECK(tested->grad_norm().item<double>() == 0);
  CHECK(owned_named(tested->owned(), "w").value[0].item<float>() == 1.0001f);
  for (OwnedTensor& owned : tested->owned()) owned.value.fill_(3);
  tested->loaded();
  tested->enter(unit, {});
  CHECK(at::equal(w.to(at::kFloat), at::full({2}, 3.0)));
  CHECK(at::equal(full, at::full({2}, 3.0)));
  tested->leave(unit, {});
}

TEST_CASE(
    "a parameter's matrices are passed to the optimizer one by one and cover the whole parameter") {
  const auto single = strategy("single");
  UnitParam experts = param("experts", random({3, 4, 5}, 1), 1);
  experts.matrices = 6;
  single->adopt({"unit", {param("norm", random({5}, 2), 0), experts}});
  single->ready({{false}, {true}});
  const std::vector<Range> ranges = single->update_ranges(1);
  REQUIRE(ranges.size() == 6);
  for (size_t i = 0; i < ranges.size(); ++i) {
    CHECK(ranges[i].name == "experts");
    CHECK(ranges[i].begin == int64_t(i) * 10);
    CHECK(ranges[i].end == int64_t(i) * 10 + 10);
  }
  single->begin_microbatch(true);
  single->update(1, [](std::span<UpdateTensor> tensors) {
    REQUIRE(tensors.size() == 6);
    for (UpdateTensor& t : tensors) {
      CHECK(t.value.sizes() == at::IntArrayRef({2, 5}));
      t.value.fill_(double(t.range.begin));
    }
  });
  CHECK(experts.tensor[1][2][0].item<float>() == 30);
  UnitParam odd = param("odd", random({3, 5}, 2));
  odd.matrices = 2;
  CHECK_THROWS_WITH(update_ranges(odd, true), Catch::Contains("'odd'"));
  const UnitParam vector = param("vector", random({5}, 2));
  REQUIRE(update_ranges(vector, true).size() == 1);
  CHECK(piece_of(vector.tensor, update_ranges(vector, true)[0], true).sizes() ==
        at::IntArrayRef({1, 5}));
}

TEST_CASE("the gradient norm is accumulated in float64 and is non-finite if any gradient is") {
  const auto single = strategy("single");
  const int64_t n = 200'001;
  const at::Tensor w = random({n}, 4);
  single->adopt({"unit", {param("w", w)}});
  single->ready({{}});
  single->begin_microbatch(true);
  const at::Tensor slopes = random({n}, 5) * 1e25;  // squares overflow fp32
  single->backward({(w * slopes).sum()});
  const double expected = slopes.to(at::kDouble).norm().item<double>();
  CHECK(single->grad_norm().item<double>() == Approx(expected).epsilon(1e-12));
  const float bad =
      GENERATE(std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN());
  const int64_t index = GENERATE(0, 70'001, 200'000);
  w.mutable_grad()[index].fill_(bad);
  CHECK_FALSE(std::isfinite(single->grad_norm().item<double>()));
  single->end_step();
  CHECK(single->grad_norm().item<double>() == 0);
}

TEST_CASE(
    "the strategy `single` rejects more than one rank and a parameter in two parameter units") {
  StrategyContext context;
  context.world = planned_communicator(2);
  CHECK_THROWS_WITH(make_built<Strategy>(Kind::strategy, "single", {}, context),
                    Catch::Contains("one rank"));
  const auto single = strategy("single");
  single->adopt({"one", {param("a", random({2}, 1))}});
  CHECK_THROWS_WITH(single->adopt({"two", {param("a", random({2}, 1))}}),
                    Catch::Contains("'a' was adopted twice"));
}

TEST_CASE("the memory estimate equals the memory in use") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const auto single = strategy("single", dtype);
  const ModelPlan plan{{{"unit", {param("w", at::empty({64, 64}, at::kMeta))}}}, {{0}}, {{}}};
  const Cost cost = single->estimate(plan, 1);
  CHECK(cost.bytes_held == 4096 * (dtype == at::kFloat ? 4 : 6));
  CHECK(cost.bytes_peak == cost.bytes_held + 4096 * 4);
  CHECK(cost.bytes_moved_per_step == 0);
}

ComponentSpec component(Kind kind, const std::string& name, const OptionValues& options) {
  ComponentSpec spec;
  spec.kind = kind;
  spec.plugin = name;
  spec.options = options;
  spec.origin.source = "test";
  return spec;
}

/// A small model with a dense layer, two MoE layers, and MTP.
Experiment small_experiment(const std::string& recompute, bool tied) {
  Experiment experiment;
  experiment.model.hidden = 16;
  experiment.model.layers = 3;
  experiment.model.recompute = recompute;
  experiment.model.tied_head = tied;
  experiment.mtp.depth = 1;
  experiment.init.std = 0.1;
  experiment.train.sequence = 12;
  const int64_t one = 1, two = 2, four = 4, eight = 8;
  experiment.attention = {{0, 2,
                           component(Kind::attention, "mla",
                                     {{"heads", two},
                                      {"kv_lora_rank", eight},
                                      {"qk_nope_dim", four},
                                      {"qk_rope_dim", four},
                                      {"v_dim", eight}})}};
  experiment.feed_forward = {
      {0, 0, component(Kind::feed_forward, "swiglu", {{"hidden", eight * 3}})},
      {1, 2,
       component(Kind::feed_forward, "moe",
                 {{"routed", four},
                  {"top_k", two},
                  {"shared", one},
                  {"hidden", eight},
                  {"balance_alpha", 1e-2}})}};
  experiment.position = component(Kind::position, "rope", {});
  OptimizerGroup muon, adamw;
  muon.name = "muon";
  muon.roles = {"matrix"};
  muon.component = component(Kind::optimizer, "muon", {{"ns_dtype", std::string("fp32")}});
  adamw.name = "adamw";
  adamw.component = component(Kind::optimizer, "adamw", {{"lr", 1e-2}});
  experiment.optimizer = {muon, adamw};
  return experiment;
}

Batch batch_of(int64_t rows, int64_t seed) {
  Batch batch;
  batch.tokens =
      (at::arange(rows * 13, at::kLong) * (7 + 4 * seed) + seed).remainder(29).view({rows, 13});
  batch.document_ids = at::zeros({rows, 13}, at::kLong);
  batch.document_ids.narrow(1, 5 + seed % 3, 4).fill_(1);
  return batch;
}

/// Results of three steps with two micro-batches each.
struct Trace {
  std::vector<double> numbers;      // losses, norms, validation
  std::vector<at::Tensor> tensors;  // number of tokens per expert, and final parameter values
};

Trace train(const std::shared_ptr<Strategy>& strategy, const Experiment& experiment) {
  Model model(experiment, 29, factory_of(experiment, built_plugins()), at::kCPU);
  OptimizerSet set(experiment, built_plugins(), model.store());
  model.adopt(*strategy, 5, [&](const Parameter& p) { return set.group_of(p); });
  strategy->ready(set.specs());
  set.bind(*strategy);
  Trace trace;
  for (int64_t step = 1; step <= 3; ++step) {
    for (int64_t i = 0; i < 2; ++i) {
      const Batch batch = batch_of(2, 2 * step + i);
      LossScale scale;
      const std::vector<int64_t> targets = count_targets(batch, 1);
      scale.main_targets = 2 * double(targets[0]);
      scale.mtp_targets = {2 * double(targets[1])};
      scale.sequences = 4;
      strategy->begin_microbatch(i == 1);
      const LossParts parts = model.loss(batch, scale);
      strategy->backward({parts.total});
      trace.numbers.push_back(parts.total.item<double>());
    }
    trace.numbers.push_back(strategy->grad_norm().item<double>());
    strategy->scale_grads(at::full({}, std::min(1.0, 0.3 / trace.numbers.back()), at::kDouble));
    set.step(*strategy, {step, 1.0 / double(step)});
    strategy->end_step();
    for (const auto& feed_forward : model.feed_forward())
      if (const at::Tensor counts = feed_forward->step_counts(); counts.defined())
        trace.tensors.push_back(counts.clone());
    trace.numbers.push_back(model.evaluate(batch_of(3, 90)).first);
  }
  for (const OwnedTensor& owned : strategy->owned()) trace.tensors.push_back(owned.value.clone());
  return trace;
}

TEST_CASE("training is bit-identical if parameters are freed between uses") {
  const std::string recompute = GENERATE("none", "full");
  const bool tied = GENERATE(false, true);
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const std::string freed = GENERATE("nan", "unmapped");
  CAPTURE(recompute, tied, freed, dtype == at::kFloat);
  const Experiment experiment = small_experiment(recompute, tied);
  const Trace expected = train(strategy("single", dtype), experiment);
  const Trace actual = train(strategy("flat", dtype, {{"freed", freed}}), experiment);
  for (double number : expected.numbers) REQUIRE(std::isfinite(number));
  CHECK(actual.numbers == expected.numbers);
  REQUIRE(actual.tensors.size() == expected.tensors.size());
  for (size_t i = 0; i < expected.tensors.size(); ++i)
    CHECK(at::equal(actual.tensors[i], expected.tensors[i]));
  CHECK(expected.numbers.back() != expected.numbers[3]);  // training changes the loss
}

TEST_CASE("the flat-buffer strategy detects parameter use outside enter() and leave()") {
  const auto flat = strategy("flat", at::kFloat);
  const at::Tensor w = at::full({2}, 2.0), x = at::ones({2}).set_requires_grad(true);
  const int unit = flat->adopt({"unit", {param("w", w)}});
  flat->ready({{}});
  CHECK(w.isnan().all().item<bool>());
  flat->begin_microbatch(true);
  at::Tensor input = x * 1;
  flat->enter(unit, {&input});
  CHECK(at::equal(w, at::full({2}, 2.0)));
  at::Tensor y = (input * w).sum();
  flat->leave(unit, {&y});
  CHECK(w.isnan().all().item<bool>());
  SECTION("results computed with a parameter after leave() are NaN") {
    flat->backward({y});
    CHECK(at::equal(x.grad(), at::full({2}, 2.0)));
    CHECK((input.detach() * w).isnan().all().item<bool>());
  }
  SECTION("an autograd graph that bypasses leave() is rejected") {
    CHECK_THROWS_WITH(flat->backward({(input * 3).sum()}), Catch::Contains("'unit'"));
  }
  SECTION("enter() without leave() is rejected") {
    flat->enter(unit, {});
    CHECK_THROWS_WITH(flat->backward({y}), Catch::Contains("called before leave()"));
  }
}

}  // namespace
}  // namespace dsv3::test
