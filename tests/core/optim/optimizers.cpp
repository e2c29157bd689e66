// Compares AdamW and Muon with independent implementations of their update rules.
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <catch2/catch.hpp>

#include <dsv3/sdk/optimizer.h>

#include "ranks/recorded_metrics.h"
#include "support/built_plugins.h"

namespace dsv3::test {
namespace {

std::shared_ptr<Optimizer> optimizer(const std::string& name, const OptionValues& options) {
  return make_built<Optimizer>(Kind::optimizer, name, options);
}

/// Parameter values and their optimizer state, as stored by the core.
struct Slices {
  std::vector<at::Tensor> values;
  std::vector<std::vector<at::Tensor>> state;
  std::vector<Range> ranges;

  Slices(const Optimizer& optimizer, std::vector<at::Tensor> start) : values(std::move(start)) {
    ranges.resize(values.size());
    for (const at::Tensor& value : values) {
      state.emplace_back();
      for (const StateSlot& slot : optimizer.slots())
        state.back().push_back(at::zeros_like(value, at::TensorOptions().dtype(slot.dtype)));
    }
  }
  void step(Optimizer& optimizer, const std::vector<at::Tensor>& grads, int64_t update,
            double factor = 1) {
    step(optimizer, grads, {.update = update, .lr_factor = factor});
  }
  void step(Optimizer& optimizer, const std::vector<at::Tensor>& grads, const OptimStep& step) {
    std::vector<Slice> slices;
    for (size_t i = 0; i < values.size(); ++i)
      slices.push_back({ranges[i], values[i], grads[i], state[i]});
    optimizer.step(slices, step);
  }
};

at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kFloat);
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

TEST_CASE("AdamW matches the update rule in its paper") {
  const int64_t n = 1003;  // not a multiple of any SIMD width
  const double lr = 1e-2, beta1 = 0.8, beta2 = 0.9, eps = 1e-6, decay = 0.3;
  const auto adamw = optimizer(
      "adamw",
      {{"lr", lr}, {"beta1", beta1}, {"beta2", beta2}, {"eps", eps}, {"weight_decay", decay}});
  CHECK_FALSE(adamw->whole_matrices());
  CHECK(adamw->lr() == lr);
  Slices slices(*adamw, {random({n}, 1)});
  std::vector<double> w(n), m(n), v(n);
  for (int64_t i = 0; i < n; ++i) w[i] = slices.values[0][i].item<float>();
  for (int64_t t = 1; t <= 4; ++t) {
    const at::Tensor grad = random({n}, 10 + t) * std::pow(10.0, 1 - double(t));
    const double factor = 1.0 / double(t);
    slices.step(*adamw, {grad}, t, factor);
    const float* g = grad.const_data_ptr<float>();
    for (int64_t i = 0; i < n; ++i) {
      m[i] = beta1 * m[i] + (1 - beta1) * g[i];
      v[i] = beta2 * v[i] + (1 - beta2) * double(g[i]) * g[i];
      const double m_hat = m[i] / (1 - std::pow(beta1, double(t)));
      const double v_hat = v[i] / (1 - std::pow(beta2, double(t)));
      w[i] -= lr * factor * decay * w[i];
      w[i] -= lr * factor * m_hat / (std::sqrt(v_hat) + eps);
    }
    const at::Tensor expected = at::from_blob(w.data(), {n}, at::kDouble);
    REQUIRE(difference(slices.values[0], expected) < 1e-6);
  }
}

TEST_CASE("adamw's updates are bit-identical however a parameter is split into slices") {
  const auto adamw = optimizer("adamw", {});
  const at::Tensor start = random({100'001}, 2), grad = random({100'001}, 3);
  Slices whole(*adamw, {start.clone()});
  Slices pieces(*adamw, {start.narrow(0, 0, 37).clone(), start.narrow(0, 37, 99'964).clone()});
  for (int64_t t = 1; t <= 2; ++t) {
    whole.step(*adamw, {grad}, t);
    pieces.step(*adamw, {grad.narrow(0, 0, 37), grad.narrow(0, 37, 99'964)}, t);
  }
  CHECK(at::equal(whole.values[0], at::cat(pieces.values)));
}

TEST_CASE("parameter values stay finite with zero and extreme gradients") {
  const std::string name = GENERATE("adamw", "muon");
  const double size = GENERATE(0.0, 1e-40, 1e-30, 1e-12, 1e15);
  const auto tested = optimizer(name, {{"weight_decay", 0.5}, {"lr", 0.1}});
  const at::Tensor start = random({6, 4}, 4);
  Slices slices(*tested, {start.clone()});
  for (int64_t t = 1; t <= 3; ++t) slices.step(*tested, {random({6, 4}, 5) * size}, t);
  CHECK(slices.values[0].isfinite().all().item<bool>());
  if (size == 0) CHECK(difference(slices.values[0], start * std::pow(0.95, 3)) < 1e-6);
}

/// Returns Muon's update direction for a gradient, multiplied by the scale ratio. With learning
/// rate 1, momentum 0 and initial values of 0, one update sets the values to the negative
/// direction.
at::Tensor direction(const at::Tensor& grad, OptionValues options = {}) {
  options.insert({{"lr", 1.0},
                  {"momentum", 0.0},
                  {"nesterov", false},
                  {"weight_decay", 0.0},
                  {"ns_dtype", "fp32"}});
  const auto muon = optimizer("muon", options);
  Slices slices(*muon, {at::zeros_like(grad)});
  slices.step(*muon, {grad}, 1);
  return -slices.values[0];
}

TEST_CASE("muon applies the Newton-Schulz polynomial to the gradient's singular values") {
  const auto [rows, cols] =
      GENERATE(table<int64_t, int64_t>({{7, 7}, {5, 12}, {12, 5}, {1, 9}, {64, 48}}));
  const at::Tensor grad = random({rows, cols}, 6);
  const auto [u, s, vh] = at::linalg_svd(grad.to(at::kDouble), /*full_matrices=*/false);
  at::Tensor values = s / s.norm();
  for (int i = 0; i < 5; ++i) {
    const at::Tensor square = values * values;
    values = values * (3.4445 + square * (-4.7750 + square * 2.0315));
  }
  const at::Tensor expected = u.matmul(values.unsqueeze(1) * vh);
  const double ratio = std::sqrt(std::max(1.0, double(rows) / double(cols)));
  CHECK(difference(direction(grad), expected * ratio) < 2e-5);
  const double rms_ratio = 0.2 * std::sqrt(double(std::max(rows, cols)));
  CHECK(difference(direction(grad, {{"scale", "match_rms_adamw"}}), expected * rms_ratio) < 2e-5);
}

TEST_CASE("muon's update direction is nearly orthogonal, even in bf16") {
  const std::string dtype = GENERATE("fp32", "bf16");
  const at::Tensor actual = direction(random({48, 32}, 7), {{"ns_dtype", dtype}});
  const at::Tensor s = at::linalg_svdvals(actual / std::sqrt(48.0 / 32.0));
  CHECK(s.min().item<float>() > 0.6);
  CHECK(s.max().item<float>() < 1.3);
}

TEST_CASE("muon records the orthogonality error of its update directions") {
  const std::string dtype = GENERATE("fp32", "bf16");
  const auto muon = optimizer(
      "muon", {{"lr", 1.0}, {"weight_decay", 0.0}, {"scale", "original"}, {"ns_dtype", dtype}});
  // Three matrices in one batch, and one in another.
  const std::vector<std::vector<int64_t>> shapes{{9, 4}, {9, 4}, {4, 9}, {9, 4}};
  std::vector<at::Tensor> start, grads;
  for (size_t i = 0; i < shapes.size(); ++i) {
    start.push_back(at::zeros(shapes[i]));
    grads.push_back(random(shapes[i], 50 + i));
  }
  const auto sink = std::make_shared<MetricSink>();
  const auto step = [&] {
    std::vector<at::Tensor> values;
    for (const at::Tensor& value : start) values.push_back(value.clone());
    Slices slices(*muon, values);
    slices.step(*muon, grads, {.metrics = Metrics(sink)});
    return slices.values;
  };
  const auto take = [&] { return take_metrics(*sink, {}, at::kCPU); };
  const std::vector<at::Tensor> quiet = step();
  CHECK(take().names.empty());
  sink->open();
  const std::vector<at::Tensor> values = step();
  double expected = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    CHECK(at::equal(values[i], quiet[i]));
    const double ratio = std::sqrt(std::max(1.0, double(shapes[i][0]) / double(shapes[i][1])));
    const at::Tensor s = at::linalg_svdvals(values[i].to(at::kDouble) / ratio);
    expected += (s.square() - 1).square().mean().sqrt().item<double>() / double(values.size());
  }
  const RecordedMetrics recorded = take();
  CHECK(recorded.names == std::vector<std::string>{"muon/orthogonality_error"});
  CHECK(recorded.values[0].item<double>() ==
        Approx(expected).epsilon(dtype == "fp32" ? 1e-5 : 2e-2));
}

TEST_CASE("muon updates the matrices in a batch independently") {
  const auto muon = optimizer("muon", {{"ns_dtype", "fp32"}});
  std::vector<at::Tensor> start, grads;
  for (int i = 0; i < 5; ++i) {
    const std::vector<int64_t> shape =
        i == 2 ? std::vector<int64_t>{9, 4} : std::vector<int64_t>{4, 9};
    start.push_back(random(shape, 20 + i));
    grads.push_back(random(shape, 30 + i) * std::pow(10.0, i - 2));
  }
  std::vector<at::Tensor> copies;
  for (const at::Tensor& value : start) copies.push_back(value.clone());
  Slices together(*muon, copies);
  for (int64_t t = 1; t <= 2; ++t) together.step(*muon, grads, t);
  for (int i = 0; i < 5; ++i) {
    Slices alone(*muon, {start[i].clone()});
    for (int64_t t = 1; t <= 2; ++t) alone.step(*muon, {grads[i]}, t);
    CHECK(difference(alone.values[0], together.values[i]) < 1e-6);
  }
}

TEST_CASE(
    "muon's two momentum forms yield the same updates, and their buffers differ by a constant "
    "factor") {
  const bool nesterov = GENERATE(false, true);
  const auto ema = optimizer("muon", {{"ns_dtype", "fp32"}, {"nesterov", nesterov}});
  const auto sum =
      optimizer("muon", {{"ns_dtype", "fp32"}, {"nesterov", nesterov}, {"momentum_form", "sum"}});
  const at::Tensor start = random({6, 8}, 8);
  Slices a(*ema, {start.clone()}), b(*sum, {start.clone()});
  for (int64_t t = 1; t <= 3; ++t) {
    a.step(*ema, {random({6, 8}, 40 + t)}, t);
    b.step(*sum, {random({6, 8}, 40 + t)}, t);
  }
  CHECK(difference(a.state[0][0], b.state[0][0] * 0.05) < 1e-6);
  // The updates match only if the Nesterov term in the ema form weights the gradient as the ema
  // buffer does: g (1 - mu) + mu B.
  CHECK(difference(a.values[0], b.values[0]) < 1e-5);
}

}  // namespace
}  // namespace dsv3::test
