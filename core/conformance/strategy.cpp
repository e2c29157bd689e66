// Conformance checks for strategies on one rank.
#include <cmath>
#include <limits>

#include "conformance/device.h"
#include "conformance/layers.h"

namespace dsv3::conformance {
namespace {

std::shared_ptr<Strategy> strategy(const Subject& subject, at::ScalarType dtype = at::kFloat,
                                   at::Device device = at::kCPU) {
  return construct<Strategy>(subject, StrategyContext{local_communicator(), device, dtype});
}

int64_t size_of(const Range& range) {
  return range.end - range.begin;
}

// A model with one parameter w = [2, 2, 2] and loss = slope * sum(w), so the gradient is `slope`.
struct OneUnit {
  explicit OneUnit(const Subject& subject, at::ScalarType dtype = at::kFloat)
      : checked(strategy(subject, dtype)) {
    w.set_requires_grad(true);
    unit = checked->adopt(
        {"unit", {{.name = "w", .tensor = w, .global_shape = {3}, .box_offset = {0}}}});
    require(unit == 0, "adopt() returns index ", unit, " for unit 0");
    checked->ready({{}});
  }
  void backward(double slope) {
    checked->begin_microbatch(true);
    at::Tensor x = at::ones({3}, w.options().requires_grad(false)).set_requires_grad(true);
    checked->enter(unit, {&x});
    at::Tensor y = w * x * slope;
    checked->leave(unit, {&y});
    checked->backward({y.sum()});
  }
  void update(const std::function<void(UpdateTensor&)>& change) {
    checked->update(0, [&](std::span<UpdateTensor> tensors) {
      for (UpdateTensor& tensor : tensors) change(tensor);
    });
  }
  double norm() { return checked->grad_norm().item<double>(); }
  void require_gradient(double expected, const std::string& what) {
    at::Tensor gradient;
    update([&](UpdateTensor& tensor) { gradient = tensor.grad.clone(); });
    require_close(gradient, at::full({3}, expected), 1e-6, what);
    checked->end_step();
  }

  std::shared_ptr<Strategy> checked;
  at::Tensor w = at::full({3}, 2.0);
  int unit = -1;
};

// A model whose parameters the strategy under test owns.
struct Adopted {
  Adopted(const Subject& subject, uint64_t seed) : checked(strategy(subject)) {
    model.adopt(*checked, seed, [](const Parameter&) { return 0; });
    checked->ready({{}});
  }
  std::shared_ptr<Strategy> checked;
  Model model{tiny_experiment(), kVocab, tiny_factory(), at::kCPU};
};

}  // namespace

void strategy_checks(const AddCheck& check) {
  check("ranges", "owns and updates each weight exactly once", [](const Subject& subject) {
    const auto checked = strategy(subject);
    Model model(tiny_experiment(), kVocab, tiny_factory(), at::kCPU);
    std::map<std::string, int64_t> sizes, owned, updated;
    for (const Parameter& parameter : model.store().parameters())
      sizes[parameter.name] = parameter.tensor.numel();
    model.adopt(*checked, 1,
                [](const Parameter& parameter) { return parameter.spec.role == Role::matrix; });
    checked->ready({{false}, {true}});
    for (const OwnedTensor& tensor : checked->owned()) {
      require(tensor.value.scalar_type() == at::kFloat,
              "owned() does not return fp32 master weights");
      require(tensor.value.numel() == size_of(tensor.range), "owned() returns a value for ",
              tensor.range.name, " whose size differs from its range");
      owned[tensor.range.name] += size_of(tensor.range);
    }
    for (const int group : {0, 1})
      for (const Range& range : checked->update_ranges(group))
        updated[range.name] += size_of(range);
    for (const auto& [name, size] : sizes) {
      require(owned[name] == size, "owned() covers ", owned[name], " of ", size, " elements of ",
              name);
      require(updated[name] == size, "update_ranges() covers ", updated[name], " of ", size,
              " elements of ", name);
    }
    require(owned.size() == sizes.size() && updated.size() == sizes.size(),
            "owned() or update_ranges() returns parameters that were never adopted");
  });
  check("gradients", "accumulates gradients and computes their norm", [](const Subject& subject) {
    OneUnit one(subject);
    one.backward(3);
    require(std::abs(one.norm() - 3 * std::sqrt(3.0)) < 1e-6, "grad_norm() is wrong");
    one.checked->scale_grads(at::full({}, 0.5, at::kDouble));
    one.require_gradient(1.5, "a gradient after scale_grads(0.5)");
    one.backward(1);
    one.require_gradient(
        1, "the gradient in the next step (end_step() must clear the previous gradient)");
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
      one.backward(bad);
      require(!std::isfinite(one.norm()), "grad_norm() is finite although a gradient is not");
      one.checked->scale_grads(at::zeros({}, at::kDouble));
      one.require_gradient(0, "a non-finite gradient after scale_grads(0), which must set it to 0");
      one.checked->end_step();
    }
    one.backward(2);
    one.require_gradient(2, "the gradient after a step that was skipped because of NaN");
  });
  check("master", "keeps fp32 master weights when computing in bf16", [](const Subject& subject) {
    OneUnit one(subject, at::kBFloat16);
    for (int step = 0; step < 10; ++step) {
      one.backward(1);
      one.update([](UpdateTensor& tensor) { tensor.value.sub_(1e-4); });
      one.checked->end_step();
    }
    const auto owned = one.checked->owned();
    require(owned.size() == 1 && owned[0].value.scalar_type() == at::kFloat,
            "master weights are not fp32 when computing in bf16");
    require_close(owned[0].value.flatten(), at::full({3}, 2 - 1e-3), 1e-6,
                  "master weights after ten updates, each too small to change a bf16 weight");
  });
  check("load", "uses loaded weights in the next forward pass", [](const Subject& subject) {
    Adopted saved(subject, 1), loaded(subject, 2);
    std::map<std::string, at::Tensor> values;
    for (const OwnedTensor& tensor : saved.checked->owned())
      values[tensor.range.name] = tensor.value.clone();
    const at::NoGradGuard no_grad;
    for (OwnedTensor& tensor : loaded.checked->owned())
      tensor.value.copy_(values.at(tensor.range.name));
    loaded.checked->loaded();
    const double expected = saved.model.evaluate(tiny_batch(0)).first;
    const double actual = loaded.model.evaluate(tiny_batch(0)).first;
    require(actual == expected, "the loss after loading through owned() and loaded() is ", actual,
            ", expected ", expected);
  });
  check("exchange", "exchanges weights between steps", [](const Subject& subject) {
    OneUnit one(subject, at::kBFloat16);
    const auto exchange = [&](double expected, double replacement) {
      one.update([&](UpdateTensor& tensor) {
        require_close(tensor.value, at::full({3}, expected), 0,
                      "a weight that update() passes between steps");
        require(!tensor.grad.defined() || largest(tensor.grad) == 0,
                "update() passes a gradient between steps that is not zero");
        tensor.value.fill_(replacement);
      });
      one.checked->loaded();
      const at::NoGradGuard no_grad;
      at::Tensor x = at::ones({3}), y;
      one.checked->enter(one.unit, {&x});
      y = one.w.to(at::kFloat);
      one.checked->leave(one.unit, {&y});
      require_close(y, at::full({3}, replacement), 0,
                    "a weight in the forward pass after update() and loaded()");
    };
    exchange(2, 3);
    one.backward(1);
    one.update([](UpdateTensor& tensor) { tensor.value.sub_(tensor.grad); });
    one.checked->end_step();
    exchange(2, 4);
  });
  check("estimate", "estimates memory on the meta device", [](const Subject& subject) {
    const Model model(tiny_experiment(), kVocab, tiny_factory(), at::kMeta);
    int64_t values = 0;
    for (const Parameter& parameter : model.store().parameters())
      values += parameter.tensor.numel();
    const ModelPlan plan{model.units([](const Parameter&) { return 0; }), model.uses(), {{}}};
    const Cost cost = strategy(subject)->estimate(plan, 1);
    require(cost.bytes_held >= 4 * values, "estimate() reports ", cost.bytes_held,
            " bytes held, less than the size of ", values, " fp32 parameters");
    require(cost.bytes_peak >= cost.bytes_held, "estimate() reports a bytes_peak below bytes_held");
    require(cost.bytes_moved_per_step == 0, "estimate() reports network traffic for a single rank");
  });
  // Trains a model with an MTP module, once with a tied and once with an untied head.
  check("training", "trains like plain autograd, with and without recomputation",
        [](const Subject& subject) {
          for (const std::string recompute : {"none", "full"})
            for (const bool tied : {true, false}) {
              const Experiment experiment = tiny_experiment(recompute, tied);
              for (const int64_t micro : {4, 1})
                require_same(train_under(strategy(subject), experiment, tiny_factory(), 3, micro),
                             train_plainly(experiment, tiny_factory(), 3, micro), 1e-5,
                             c10::str("compared with plain autograd (recompute: ", recompute, ", ",
                                      tied ? "tied" : "untied", " head, micro_batch ", micro, ")"));
            }
        });
  strategy_rank_checks(check);
  device_check(check, [](const Subject& subject) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      // In bf16, rounding errors of the first update make the second step incomparable.
      const int64_t steps = dtype == at::kFloat ? 2 : 1;
      const auto train = [&](at::Device device) {
        return train_under(strategy(subject, dtype, device), tiny_experiment(), tiny_factory(),
                           steps, 2, dtype, device);
      };
      const Trained on_cpu = train(at::kCPU), on_gpu = train(subject.device);
      require_same(on_gpu, on_cpu, device_bound(dtype),
                   c10::str(steps, " step(s) in ", precision_name(dtype), " on ", subject.device,
                            ", compared with the CPU"));
    }
  });
}

}  // namespace dsv3::conformance
