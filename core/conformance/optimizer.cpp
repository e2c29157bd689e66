// Conformance checks for optimizers.
#include <array>
#include <cmath>
#include <set>

#include <dsv3/runtime/optimizer_set.h>

#include "conformance/device.h"
#include "conformance/layers.h"

namespace dsv3::conformance {
namespace {

// A parameter, its state as the core stores it, and the optimizer that updates it.
struct Updated {
  Updated(const Subject& subject, uint64_t seed)
      : Updated(construct<Optimizer>(subject), "w", seed) {}
  Updated(std::shared_ptr<Optimizer> by, const std::string& name, uint64_t seed,
          at::Device device = at::kCPU)
      : Updated(by, {name, {8, 12}, {0, 0}, {8, 12}, 0, 8 * 12, true},
                normal({8, 12}, seed, at::kFloat).to(device)) {}
  Updated(std::shared_ptr<Optimizer> by, Range of, at::Tensor values)
      : optimizer(std::move(by)), range(std::move(of)), value(std::move(values)) {
    if (!optimizer->whole_matrices()) value = value.flatten();
    state = zero_state(optimizer->slots(), value.sizes(), value.device());
  }

  /// A gradient that depends on the parameter's value and on the update number.
  at::Tensor gradient(int64_t update) const {
    return normal(value.sizes(), 500 + uint64_t(update), at::kFloat) + value * 0.1;
  }
  Slice slice(const at::Tensor& grad) { return {range, value, grad, state}; }
  at::Tensor evaluation() { return optimizer->evaluation_weights(slice({})); }
  void step(const at::Tensor& grad, int64_t update, double factor = 1) {
    optimizer->step(std::array{slice(grad.clone())}, {update, factor});
  }
  void step(int64_t update) { step(gradient(update), update); }
  void require_finite(const std::string& when) const {
    require_like(value, value.sizes(), at::kFloat, "the value " + when);
    for (const at::Tensor& tensor : state)
      require(at::isfinite(tensor).all().item<bool>(), "state is not finite ", when);
  }

  std::shared_ptr<Optimizer> optimizer;
  Range range;
  at::Tensor value;
  std::vector<at::Tensor> state;
};

// Makes four updates of two parameters on the CPU and on the subject's device, with the same
// gradients. Throws a Violation unless the values and the state are the same.
void require_same_updates_on_device(const Subject& subject) {
  constexpr double kScale = 0.01;  // small values, so that rounding hides no difference in updates
  const auto create = [&](at::Device device) {
    const auto optimizer = construct<Optimizer>(subject);
    std::vector<Updated> parameters;
    for (uint64_t i = 0; i < 2; ++i)
      parameters.emplace_back(optimizer, "w" + std::to_string(i), 60 + i, device)
          .value.mul_(kScale);
    return parameters;
  };
  const auto step = [](std::vector<Updated>& parameters, const std::vector<at::Tensor>& gradients,
                       int64_t update) {
    std::vector<Slice> slices;
    for (size_t i = 0; i < parameters.size(); ++i)
      slices.push_back(parameters[i].slice(gradients[i].to(parameters[i].value.device(), at::kFloat,
                                                           /*non_blocking=*/false, /*copy=*/true)));
    const WaitRecorder recorder("step");
    parameters.front().optimizer->step(slices, {update, 1});
  };
  std::vector<Updated> expected = create(at::kCPU), actual = create(subject.device);
  std::vector<at::Tensor> before;
  for (const Updated& parameter : expected) before.push_back(parameter.value.clone());
  bool in_half = false;
  for (int64_t update = 1; update <= 4; ++update) {
    std::vector<at::Tensor> gradients;
    for (const Updated& parameter : expected) gradients.push_back(parameter.gradient(update));
    in_half |= computes_in_half([&] { step(expected, gradients, update); });
    in_half |= computes_in_half([&] { step(actual, gradients, update); });
  }
  // An update that is computed in bf16, such as Muon's by default, is compared by itself, with the
  // bound for bf16.
  const auto results = [&](std::vector<Updated>& parameters) {
    Computed computed;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const at::Tensor& value = parameters[i].value;
      const std::vector<at::Tensor>& state = parameters[i].state;
      const std::string of = " of parameter " + parameters[i].range.name;
      require_like(value, before[i].sizes(), at::kFloat, "the value" + of, value.device());
      computed.results.emplace_back(in_half ? "the change" + of : "the value" + of,
                                    in_half ? value.cpu() - before[i] : value);
      if (parameters[i].optimizer->has_evaluation_weights())
        computed.results.emplace_back("the evaluation weights" + of, parameters[i].evaluation());
      for (size_t slot = 0; slot < state.size(); ++slot)
        computed.results.emplace_back("state " + std::to_string(slot) + of, state[slot]);
    }
    return computed;
  };
  const Computed on_cpu = results(expected), on_gpu = results(actual);
  require_same_on_device(on_gpu, on_cpu, subject.device, in_half ? at::kBFloat16 : at::kFloat);
}

}  // namespace

void optimizer_checks(const AddCheck& check) {
  check("slots", "declares its state", [](const Subject& subject) {
    const auto optimizer = construct<Optimizer>(subject);
    std::set<std::string> names;
    for (const StateSlot& slot : optimizer->slots()) {
      require(!slot.name.empty() && slot.name.find('/') == std::string::npos, "state slot '",
              slot.name, "' needs a name without '/'");
      require(names.insert(slot.name).second, "two state slots are named ", slot.name);
      const bool of_any_slice =
          slot.like == StateSlot::Like::value || slot.like == StateSlot::Like::scalar;
      require(of_any_slice || optimizer->whole_matrices(), "the shape of state slot ", slot.name,
              " requires whole matrices, but whole_matrices() is false");
    }
    require(std::isfinite(optimizer->lr()) && optimizer->lr() >= 0, "lr() is ", optimizer->lr());
  });
  check("inputs", "keeps no reference to tensors passed to it", [](const Subject& subject) {
    Updated one(subject, 9);
    const at::Tensor grad = one.gradient(1);
    one.optimizer->step(std::array{one.slice(grad)}, {1, 1});
    require(grad.use_count() == 1 && one.value.use_count() == 1,
            "the optimizer keeps a reference to the gradient or the value after step()");
    for (const at::Tensor& state : one.state)
      require(state.use_count() == 1, "the optimizer keeps a reference to its state after step()");
  });
  check("lr_factor", "scales the learning rate by lr_factor", [](const Subject& subject) {
    // Two updates, because some optimizers, such as SOAP, use the first gradient only to initialise
    // their state.
    const auto change = [&](double factor) {
      Updated one(subject, 1);
      const at::Tensor before = one.value.clone(), grads[] = {one.gradient(1), one.gradient(2)};
      for (int64_t update = 1; update <= 2; ++update) one.step(grads[update - 1], update, factor);
      return at::Tensor(one.value - before);
    };
    require(change(0).abs().max().item<double>() == 0, "steps with lr_factor 0 change the weights");
    const at::Tensor full = change(1);
    require(full.abs().max().item<double>() > 0, "two steps change nothing");
    // The tolerance allows for rounding, because the weights are far larger than their changes.
    require_close(
        change(0.5) * 2, full, 2e-2,
        "twice the change with lr_factor 0.5, compared with the change with lr_factor 1,");
  });
  check("descent", "descends a quadratic", [](const Subject& subject) {
    Updated one(subject, 2);
    const at::Tensor target = normal(one.value.sizes(), 3, at::kFloat);
    const auto loss = [&] { return (one.value - target).square().mean().item<double>(); };
    const double before = loss();
    // Optimizers' learning rates differ by orders of magnitude. 300 steps are enough to see a
    // decrease even with the smallest one.
    for (int64_t update = 1; update <= 300; ++update) one.step(one.value - target, update);
    require(loss() < before, "300 steps on |w - target|^2 / 2 increase the loss from ", before,
            " to ", loss());
    one.require_finite("after 300 steps");
  });
  check("extremes", "stays finite for zero, tiny and huge gradients", [](const Subject& subject) {
    for (const double size : {0.0, 1e-30, 1e-12, 1e6, 1e15}) {
      Updated one(subject, 4);
      for (int64_t update = 1; update <= 3; ++update)
        one.step(normal(one.value.sizes(), 500 + uint64_t(update), at::kFloat) * size, update);
      one.require_finite(c10::str("after gradients of size ", size));
    }
  });
  // The core may pass all slices in one call or one by one, in any order.
  check(
      "pure", "computes bit-identical updates for any grouping and order of slices",
      [](const Subject& subject) {
        const auto together = construct<Optimizer>(subject), apart = construct<Optimizer>(subject);
        std::vector<Updated> a, b;
        for (uint64_t i = 0; i < 3; ++i) {
          a.emplace_back(together, "w" + std::to_string(i), i);
          b.emplace_back(apart, "w" + std::to_string(i), i);
        }
        for (int64_t update = 1; update <= 3; ++update) {
          std::vector<Slice> slices;
          for (Updated& parameter : a)
            slices.push_back(parameter.slice(parameter.gradient(update)));
          together->step(slices, {update, 1});
          for (size_t i = b.size(); i-- > 0;) b[i].step(update);
        }
        for (size_t i = 0; i < a.size(); ++i)
          require_equal(
              b[i].value, a[i].value,
              "a parameter updated in a separate call, compared with one call for all parameters,");
      });
  check("vectors", "updates whole vectors if it accepts them", [](const Subject& subject) {
    const auto optimizer = construct<Optimizer>(subject);
    if (!optimizer->whole_matrices() || !optimizer->whole_vectors()) return;
    Updated vector(optimizer, {"v", {12}, {0}, {12}, 0, 12, true}, normal({1, 12}, 9, at::kFloat));
    const at::Tensor before = vector.value.clone();
    for (int64_t update = 1; update <= 3; ++update) vector.step(update);
    vector.require_finite("after updates of a vector [1, n]");
    require(!at::equal(vector.value, before), "updates do not change a vector [1, n]");
  });
  // Sharded strategies pass pieces of parameters.
  check("pieces", "updates pieces of a parameter like the whole parameter",
        [](const Subject& subject) {
          Updated whole(subject, 5);
          if (whole.optimizer->whole_matrices()) return;
          const int64_t cut = 37, size = whole.value.numel();
          const auto piece = [&](int64_t begin, int64_t end) {
            Range range = whole.range;
            range.begin = begin;
            range.end = end;
            return Updated(whole.optimizer, range, whole.value.slice(0, begin, end).clone());
          };
          Updated first = piece(0, cut), second = piece(cut, size);
          for (int64_t update = 1; update <= 4; ++update) {
            const at::Tensor grad = whole.gradient(update);
            first.step(grad.narrow(0, 0, cut), update);
            second.step(grad.narrow(0, cut, size - cut), update);
            whole.step(grad, update);
          }
          require_close(at::cat({first.value, second.value}), whole.value, 1e-6,
                        "a parameter updated in two pieces, compared with one updated as a whole,");
        });
  check("metrics", "records described metrics, without changing its updates",
        [](const Subject& subject) {
          Updated recording(subject, 8), other(subject, 8);
          require_described_metrics(subject, [&](const Metrics& metrics) {
            const at::Tensor grad = other.gradient(1);
            recording.optimizer->step(std::array{recording.slice(grad.clone())},
                                      {1, 1, 0.1, metrics});
            other.optimizer->step(std::array{other.slice(grad.clone())}, {1, 1, 0.1});
          });
          require_equal(recording.value, other.value, "the parameter when metrics are recorded");
        });
  check("resume", "resumes from saved state, bit for bit", [](const Subject& subject) {
    Updated straight(subject, 6), resumed(subject, 7);
    for (int64_t update = 1; update <= 3; ++update) straight.step(update);
    resumed.value.copy_(straight.value);
    for (size_t i = 0; i < straight.state.size(); ++i) resumed.state[i].copy_(straight.state[i]);
    for (int64_t update = 4; update <= 6; ++update) {
      const at::Tensor grad = straight.gradient(update);
      straight.step(grad, update);
      resumed.step(grad, update);
    }
    require_equal(resumed.value, straight.value,
                  "the parameter after resuming from saved parameters and optimizer state (check "
                  "that slots() lists every state tensor)");
  });
  check("evaluation", "computes evaluation weights without changing its state",
        [](const Subject& subject) {
          Updated one(subject, 10);
          if (!one.optimizer->has_evaluation_weights()) return;
          for (int64_t update = 1; update <= 3; ++update) one.step(update);
          std::vector<at::Tensor> tensors = one.state, before;
          tensors.push_back(one.value);
          for (const at::Tensor& tensor : tensors) before.push_back(tensor.clone());
          require_like(one.evaluation(), one.value.sizes(), at::kFloat,
                       "the result of evaluation_weights()");
          for (size_t i = 0; i < tensors.size(); ++i)
            require_equal(tensors[i], before[i],
                          "the state or the value after evaluation_weights()");
        });
  check("memory", "frees its memory", [](const Subject& subject) {
    Updated one(subject, 8);
    int64_t update = 0;
    require_steady_memory([&] { one.step(++update); });
  });
  device_check(check, &require_same_updates_on_device);
}

}  // namespace dsv3::conformance
