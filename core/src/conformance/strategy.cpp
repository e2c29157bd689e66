// Promises of strategies on one rank.
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/strategy.h>

#include "conformance/layers.h"
#include "conformance/training.h"

namespace dsv3::conformance {
namespace {

std::shared_ptr<Strategy> strategy(const Subject& subject, at::ScalarType dtype = at::kFloat) {
  StrategyContext context;
  context.world = local_communicator();
  context.compute_dtype = dtype;
  return make<Strategy>(subject, context);
}

UnitParam param(const std::string& name, at::Tensor tensor) {
  UnitParam made;
  made.name = name;
  made.global_shape = tensor.sizes().vec();
  made.box_offset.assign(made.global_shape.size(), 0);
  made.tensor = tensor.set_requires_grad(true);
  return made;
}

void check_training(const Subject& subject) {
  for (const char* recompute : {"none", "full"})
    for (const bool tied : {true, false}) {
      Experiment experiment = tiny_experiment();
      experiment.model.recompute = recompute;
      experiment.model.tied_head = tied;
      for (const int64_t micro : {int64_t{4}, int64_t{1}})
        require_same(train_under(strategy(subject), experiment, tiny_factory(), 3, micro),
                     train_plainly(experiment, tiny_factory(), 3, micro), 1e-5,
                     std::string("against plain autograd (recompute: ") + recompute + ", " +
                         (tied ? "tied" : "untied") + " head, micro_batch " +
                         std::to_string(micro) + ")");
    }
}

void check_ranges(const Subject& subject) {
  const auto made = strategy(subject);
  Model model(tiny_experiment(), kVocab, tiny_factory(), at::kCPU);
  std::map<std::string, int64_t> wanted;
  for (const Parameter& each : model.store().parameters()) wanted[each.name] = each.tensor.numel();
  model.adopt(*made, 1, [](const Parameter& each) { return each.spec.role == Role::matrix; });
  made->ready({{false}, {true}});
  std::map<std::string, int64_t> owned, updated;
  for (const OwnedTensor& each : made->owned()) {
    require(each.value.scalar_type() == at::kFloat, "owned() values are fp32 master values");
    require(each.value.numel() == each.range.end - each.range.begin,
            "owned(): the value of " + each.range.name + " does not have its range's size");
    owned[each.range.name] += each.range.end - each.range.begin;
  }
  for (const int group : {0, 1})
    for (const Range& range : made->update_ranges(group))
      updated[range.name] += range.end - range.begin;
  for (const auto& [name, size] : wanted) {
    require(owned[name] == size, "owned() covers " + std::to_string(owned[name]) + " of " +
                                     std::to_string(size) + " elements of " + name);
    require(updated[name] == size, "update_ranges() covers " + std::to_string(updated[name]) +
                                       " of " + std::to_string(size) + " elements of " + name);
  }
  require(owned.size() == wanted.size() && updated.size() == wanted.size(),
          "it hands out parameters that it was never given");
}

// w = 2, loss = slope * sum(w): gradients that can be read off.
struct OneUnit {
  std::shared_ptr<Strategy> made;
  at::Tensor w = at::full({3}, 2.0);
  int unit;
  explicit OneUnit(const Subject& subject, at::ScalarType dtype = at::kFloat)
      : made(strategy(subject, dtype)), unit(made->adopt({"unit", {param("w", w)}})) {
    require(unit == 0, "adopt() gives index " + std::to_string(unit) + " to unit 0");
    made->ready({{}});
  }
  void run(double slope) {
    made->begin_microbatch(true);
    at::Tensor x = at::ones({3}, w.options().requires_grad(false));
    x.set_requires_grad(true);
    made->enter(unit, {&x});
    at::Tensor y = w * x * slope;
    made->leave(unit, {&y});
    made->backward({y.sum()});
  }
  at::Tensor gradient() {
    at::Tensor got;
    made->update(0, [&](std::span<UpdateTensor> tensors) {
      for (const UpdateTensor& each : tensors) got = each.grad.clone();
    });
    return got;
  }
};

void check_gradients(const Subject& subject) {
  OneUnit one(subject);
  one.run(3);
  require(std::abs(one.made->grad_norm() - 3 * std::sqrt(3.0)) < 1e-6, "grad_norm() is wrong");
  one.made->scale_grads(0.5);
  require_close(one.gradient(), at::full({3}, 1.5), 1e-6, "a gradient after scale_grads(0.5)");
  one.made->end_step();
  one.run(1);
  require_close(one.gradient(), at::ones({3}), 1e-6,
                "the gradient of the next step (end_step() drops the last one's)");
  one.made->end_step();
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    one.run(bad);
    require(!std::isfinite(one.made->grad_norm()),
            "grad_norm() is finite though a gradient is not");
    one.made->end_step();
  }
  one.run(2);
  require_close(one.gradient(), at::full({3}, 2.0), 1e-6,
                "the gradient after a step that was skipped for NaN");
  one.made->end_step();
}

void check_master(const Subject& subject) {
  OneUnit one(subject, at::kBFloat16);
  for (int step = 0; step < 10; ++step) {
    one.run(1);
    one.made->update(0, [](std::span<UpdateTensor> tensors) {
      for (UpdateTensor& each : tensors) each.value.sub_(1e-4);
    });
    one.made->end_step();
  }
  const auto owned = one.made->owned();
  require(owned.size() == 1 && owned[0].value.scalar_type() == at::kFloat,
          "with bf16 compute, master values are not fp32");
  require_close(owned[0].value.flatten(), at::full({3}, 2 - 1e-3), 1e-6,
                "master values after ten updates too small for bf16");
}

void check_load(const Subject& subject) {
  const auto one = strategy(subject);
  Model model(tiny_experiment(), kVocab, tiny_factory(), at::kCPU);
  model.adopt(*one, 1, [](const Parameter&) { return 0; });
  one->ready({{}});
  Model other(tiny_experiment(), kVocab, tiny_factory(), at::kCPU);
  const auto two = strategy(subject);
  other.adopt(*two, 2, [](const Parameter&) { return 0; });
  two->ready({{}});
  std::map<std::string, at::Tensor> saved;
  for (const OwnedTensor& each : one->owned()) saved[each.range.name] = each.value.clone();
  {
    const at::NoGradGuard no_grad;
    for (OwnedTensor& each : two->owned()) each.value.copy_(saved.at(each.range.name));
  }
  two->loaded();
  const auto loss = [&](Model& of) { return of.evaluate(tiny_batch(0)).first; };
  require(loss(model) == loss(other), "a model loaded through owned() and loaded() computes " +
                                          std::to_string(loss(other)) + ", the saved one " +
                                          std::to_string(loss(model)));
}

void check_estimate(const Subject& subject) {
  const auto made = strategy(subject);
  const Model model(tiny_experiment(), kVocab, tiny_factory(), at::kMeta);
  int64_t values = 0;
  for (const Parameter& each : model.store().parameters()) values += each.tensor.numel();
  const std::vector<UnitSpec> units = model.units([](const Parameter&) { return 0; });
  const Cost cost = made->estimate(units, 1);
  require(cost.bytes_held >= 4 * values, "estimate() holds " + std::to_string(cost.bytes_held) +
                                             " bytes, fewer than the fp32 values of " +
                                             std::to_string(values) + " parameters");
  require(cost.bytes_peak >= cost.bytes_held, "estimate(): the peak is below what is held");
  require(cost.bytes_moved_per_step == 0, "estimate() moves bytes over the network on one rank");
}

}  // namespace

std::vector<Check> strategy_checks() {
  return {
      {"ranges", "hands out every element of every parameter once", check_ranges},
      {"gradients", "sums, measures, scales and drops gradients", check_gradients},
      {"master", "keeps fp32 master values under bf16 compute", check_master},
      {"load", "computes with what was loaded", check_load},
      {"estimate", "estimates memory on the meta device", check_estimate},
      {"training",
       "trains as plain autograd does, with accumulation, recomputation, MTP and tied "
       "heads",
       check_training},
  };
}

}  // namespace dsv3::conformance
