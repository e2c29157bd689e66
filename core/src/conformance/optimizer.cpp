// Promises of optimizers.
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/optimizer.h>

#include "conformance/layers.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kRows = 8, kColumns = 12;

// One parameter with its state, as the core keeps them.
struct Owned {
  Range range;
  at::Tensor value;
  std::vector<at::Tensor> state;
};

std::vector<at::Tensor> new_state(const Optimizer& optimizer, const at::Tensor& value) {
  std::vector<at::Tensor> state;
  for (const StateSlot& slot : optimizer.slots()) {
    const auto options = value.options().dtype(slot.dtype);
    state.push_back(slot.like == StateSlot::Like::scalar ? at::zeros({}, options)
                                                         : at::zeros(value.sizes(), options));
  }
  return state;
}

Owned owned(const Optimizer& optimizer, const std::string& name, uint64_t seed) {
  Owned made;
  made.range = {name, {kRows, kColumns}, {0, 0}, {kRows, kColumns}, 0, kRows * kColumns, true};
  made.value = normal({kRows, kColumns}, seed, at::kFloat);
  if (!optimizer.whole_matrices()) made.value = made.value.flatten();
  made.state = new_state(optimizer, made.value);
  return made;
}

at::Tensor gradient(const Owned& of, int64_t update) {
  return normal(of.value.sizes(), 500 + static_cast<uint64_t>(update), at::kFloat) + of.value * 0.1;
}

void step(Optimizer& optimizer, Owned& of, const at::Tensor& grad, int64_t update,
          double factor = 1) {
  const Slice slice{of.range, of.value, grad.clone(), of.state};
  optimizer.step({&slice, 1}, {update, factor});
}

void require_finite(const Owned& of, const std::string& when) {
  require_like(of.value, of.value.sizes(), at::kFloat, "the value " + when);
  for (const at::Tensor& state : of.state)
    require(at::isfinite(state).all().item<bool>(), "state is not finite " + when);
}

void check_slots(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  std::vector<std::string> names;
  for (const StateSlot& slot : optimizer->slots()) {
    require(!slot.name.empty() && slot.name.find('/') == std::string::npos,
            "a state slot is called '" + slot.name + "'; slots need a name without '/'");
    require(std::find(names.begin(), names.end(), slot.name) == names.end(),
            "two state slots are called " + slot.name);
    names.push_back(slot.name);
    require(slot.like != StateSlot::Like::matrix || optimizer->whole_matrices(),
            "state slot " + slot.name + " is like a matrix, but whole_matrices() is false");
  }
  require(std::isfinite(optimizer->lr()) && optimizer->lr() >= 0,
          "lr() is " + std::to_string(optimizer->lr()));
}

void check_inputs(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  Owned one = owned(*optimizer, "w", 9);
  const at::Tensor grad = gradient(one, 1);
  {
    const Slice slice{one.range, one.value, grad, one.state};
    optimizer->step({&slice, 1}, {1, 1});
  }
  require(grad.use_count() == 1 && one.value.use_count() == 1,
          "it keeps the gradient or the value when step() is over");
  for (const at::Tensor& state : one.state)
    require(state.use_count() == 1, "it keeps its state when step() is over");
}

void check_learning_rate(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  const auto change = [&](double factor) {
    Owned one = owned(*optimizer, "w", 1);
    const at::Tensor was = one.value.clone();
    step(*optimizer, one, gradient(one, 1), 1, factor);
    return at::Tensor(one.value - was);
  };
  require(change(0).abs().max().item<double>() == 0, "with lr_factor 0 a step changes values");
  const at::Tensor one = change(1);
  require(one.abs().max().item<double>() > 0, "a step changes nothing");
  // The bound leaves room for the rounding of values that are far larger than their change.
  require_close(change(0.5) * 2, one, 2e-2, "twice the change with lr_factor 0.5");
}

void check_descent(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  Owned one = owned(*optimizer, "w", 2);
  const at::Tensor target = normal(one.value.sizes(), 3, at::kFloat);
  const auto loss = [&] { return (one.value - target).square().mean().item<double>(); };
  const double before = loss();
  // Learning rates differ by orders of magnitude: enough steps for the smallest.
  for (int64_t update = 1; update <= 300; ++update)
    step(*optimizer, one, one.value - target, update);
  require(loss() < before, "300 steps on |w - target|^2 / 2 raise it from " + c10::str(before) +
                               " to " + c10::str(loss()));
  require_finite(one, "after 300 steps");
}

void check_extremes(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  for (const double size : {0.0, 1e-30, 1e-12, 1e6, 1e15}) {
    Owned one = owned(*optimizer, "w", 4);
    for (int64_t update = 1; update <= 3; ++update)
      step(*optimizer, one, gradient(one, update) * size, update);
    require_finite(one, "after gradients of size " + c10::str(size));
  }
}

// The core may hand out all slices in one call or one by one, in any order.
void check_pure(const Subject& subject) {
  const auto together = make<Optimizer>(subject), apart = make<Optimizer>(subject);
  std::vector<Owned> a, b;
  for (uint64_t i = 0; i < 3; ++i) {
    a.push_back(owned(*together, "w" + std::to_string(i), i));
    b.push_back(owned(*apart, "w" + std::to_string(i), i));
  }
  for (int64_t update = 1; update <= 3; ++update) {
    std::vector<Slice> slices;
    for (Owned& each : a)
      slices.push_back({each.range, each.value, gradient(each, update), each.state});
    together->step(slices, {update, 1});
    for (size_t i = b.size(); i-- > 0;) step(*apart, b[i], gradient(b[i], update), update);
  }
  for (size_t i = 0; i < a.size(); ++i)
    require_equal(b[i].value, a[i].value,
                  "a parameter that was updated in a call of its own, against all in one call:");
}

// Sharded strategies hand out pieces of parameters.
void check_pieces(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  if (optimizer->whole_matrices()) return;
  Owned whole = owned(*optimizer, "w", 5);
  const at::Tensor start = whole.value.clone();
  const int64_t cut = 37, size = whole.value.numel();
  Owned first{whole.range, start.narrow(0, 0, cut).clone(), {}};
  Owned second{whole.range, start.narrow(0, cut, size - cut).clone(), {}};
  first.range.end = second.range.begin = cut;
  first.state = new_state(*optimizer, first.value);
  second.state = new_state(*optimizer, second.value);
  for (int64_t update = 1; update <= 4; ++update) {
    const at::Tensor grad = gradient(whole, update);
    step(*optimizer, first, grad.narrow(0, 0, cut), update);
    step(*optimizer, second, grad.narrow(0, cut, size - cut), update);
    step(*optimizer, whole, grad, update);
  }
  require_close(at::cat({first.value, second.value}), whole.value, 1e-6,
                "a parameter updated in two pieces, against one piece:");
}

void check_resume(const Subject& subject) {
  const auto straight = make<Optimizer>(subject);
  Owned one = owned(*straight, "w", 6);
  for (int64_t update = 1; update <= 3; ++update)
    step(*straight, one, gradient(one, update), update);
  const auto resumed = make<Optimizer>(subject);
  Owned other = owned(*resumed, "w", 7);
  other.value.copy_(one.value);
  for (size_t i = 0; i < one.state.size(); ++i) other.state[i].copy_(one.state[i]);
  for (int64_t update = 4; update <= 6; ++update) {
    const at::Tensor grad = gradient(one, update);
    step(*straight, one, grad, update);
    step(*resumed, other, grad, update);
  }
  require_equal(
      other.value, one.value,
      "after going on from saved values and state (all memory must be in slots()): value");
}

void check_memory(const Subject& subject) {
  const auto optimizer = make<Optimizer>(subject);
  Owned one = owned(*optimizer, "w", 8);
  int64_t update = 0;
  require_steady_memory([&] {
    ++update;
    step(*optimizer, one, gradient(one, update), update);
  });
}

}  // namespace

std::vector<Check> optimizer_checks() {
  return {
      {"slots", "declares its state", check_slots},
      {"inputs", "keeps nothing that it is handed", check_inputs},
      {"lr_factor", "multiplies its learning rate by the schedule's factor", check_learning_rate},
      {"descent", "goes down a quadratic", check_descent},
      {"extremes", "stays finite for zero, tiny and huge gradients", check_extremes},
      {"pure", "gives equal bits for any grouping and order of slices", check_pure},
      {"pieces", "updates pieces of a parameter as it updates the whole", check_pieces},
      {"resume", "goes on from saved state as if never stopped, bit for bit", check_resume},
      {"memory", "gives its memory back", check_memory},
  };
}

}  // namespace dsv3::conformance
