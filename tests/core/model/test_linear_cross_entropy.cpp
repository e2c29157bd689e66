#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <catch2/catch.hpp>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/ops.h>

#include "support/gradcheck.h"

namespace dsv3 {
namespace {

struct Case {
  at::Tensor x, weight, targets;
};

/// Reproducible normally distributed inputs. If `holes`, every third target is missing.
Case make_case(int64_t rows, int64_t hidden, int64_t vocab, at::ScalarType dtype,
               bool holes = true) {
  at::Generator generator = at::detail::createCPUGenerator(7);
  Case c;
  c.x = at::randn({rows, hidden}, generator, at::kDouble).to(dtype).set_requires_grad(true);
  c.weight = at::randn({vocab, hidden}, generator, at::kDouble).to(dtype).set_requires_grad(true);
  c.targets = at::randint(vocab, {rows}, generator, at::kLong);
  if (holes)
    for (int64_t i = 1; i < rows; i += 3) c.targets[i] = -1;
  return c;
}

struct Outcome {
  double loss, plain;
  at::Tensor dx, dw;
};

Outcome run(const Case& c, double z, double scale, int64_t chunk) {
  c.x.mutable_grad() = at::Tensor();
  c.weight.mutable_grad() = at::Tensor();
  const auto [loss, plain] = linear_cross_entropy(c.x, c.weight, c.targets, z, scale, chunk);
  torch::autograd::backward({loss}, {});
  return {loss.item<double>(), plain.item<double>(), c.x.grad(), c.weight.grad()};
}

/// Computes losses and gradients from the definition, in float64, with log_softmax and autograd.
Outcome by_definition(const Case& c, double z, double scale) {
  const at::Tensor x = c.x.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor weight = c.weight.detach().to(at::kDouble).set_requires_grad(true);
  at::Tensor loss = at::zeros({}, at::kDouble), plain = at::zeros({}, at::kDouble);
  for (int64_t i = 0; i < x.size(0); ++i) {
    const int64_t target = c.targets[i].item<int64_t>();
    if (target < 0) continue;
    const at::Tensor logits = at::mv(weight, x[i]);
    plain = plain - at::log_softmax(logits, 0)[target];
    loss = loss + z * logits.logsumexp(0).square();
  }
  loss = (loss + plain) * scale;
  torch::autograd::backward({loss}, {});
  return {loss.item<double>(), plain.item<double>(), x.grad(), weight.grad()};
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

TEST_CASE("linear_cross_entropy matches its definition") {
  const double z = GENERATE(0.0, 0.01);
  const int64_t chunk = GENERATE(0, 1, 5);
  const int64_t vocab = GENERATE(1, 15, 16, 67, 1000);
  const Case c = make_case(17, 8, vocab, at::kFloat);
  const Outcome expected = by_definition(c, z, 0.125);
  const Outcome actual = run(c, z, 0.125, chunk);
  CHECK(actual.loss == Approx(expected.loss).epsilon(1e-6).margin(1e-6));
  CHECK(actual.plain == Approx(expected.plain).epsilon(1e-6).margin(1e-6));
  if (vocab == 1 && z == 0) {
    // The gradient is zero for a one-token vocabulary.
    CHECK(actual.dw.abs().max().item<double>() < 1e-6);
  } else {
    CHECK(relative(actual.dx, expected.dx) < 2e-6);
    CHECK(relative(actual.dw, expected.dw) < 2e-6);
  }
}

TEST_CASE("the fused and the reference linear_cross_entropy pass gradcheck in float64") {
  use_reference_ops(GENERATE(false, true));
  const Case c = make_case(7, 4, 9, at::kDouble);
  const double error = test::gradcheck(
      [&](const std::vector<at::Tensor>& in) {
        const auto loss = linear_cross_entropy(in[0], in[1], c.targets, 0.02, 0.5, 3).first;
        return std::vector<at::Tensor>{loss * 3};  // an upstream gradient other than 1
      },
      {c.x, c.weight});
  use_reference_ops(false);
  CHECK(error < 1e-7);
}

TEST_CASE("linear_cross_entropy in bf16 is accurate to bf16 precision") {
  const int64_t chunk = GENERATE(0, 4);
  const Case c = make_case(32, 16, 300, at::kBFloat16);
  const Outcome expected = by_definition(c, 0, 1);
  const Outcome actual = run(c, 0, 1, chunk);
  CHECK(actual.loss == Approx(expected.loss).epsilon(5e-3));
  CHECK(actual.dx.scalar_type() == at::kBFloat16);
  CHECK(actual.dw.scalar_type() == at::kBFloat16);
  CHECK(relative(actual.dx, expected.dx) < 1e-2);
  CHECK(relative(actual.dw, expected.dw) < 1e-2);
}

TEST_CASE("linear_cross_entropy in bf16 is as accurate with many chunks as with one") {
  // Every row adds the same small gradient. A bf16 sum would stop growing after 256 rows.
  const int64_t rows = 1024;
  Case c;
  c.x = at::ones({rows, 4}, at::kBFloat16).set_requires_grad(true);
  c.weight = at::zeros({2, 4}, at::kBFloat16).set_requires_grad(true);
  c.targets = at::zeros({rows}, at::kLong);
  const Outcome actual = run(c, 0, 1, 1);
  CHECK(actual.dw[0][0].item<double>() == Approx(-0.5 * double(rows)));
}

TEST_CASE("linear_cross_entropy returns zero loss and gradients if no row has a target") {
  const at::ScalarType dtype = GENERATE(at::kFloat, at::kDouble, at::kBFloat16);
  Case c = make_case(6, 4, 11, dtype);
  c.targets.fill_(-1);
  const Outcome actual = run(c, 0.1, 1, 0);
  CHECK(actual.loss == 0);
  CHECK(actual.plain == 0);
  CHECK(actual.dx.abs().max().item<double>() == 0);
  CHECK(actual.dw.abs().max().item<double>() == 0);
}

TEST_CASE("rows without a target have no gradient and do not affect other rows") {
  const Case with = make_case(12, 8, 50, at::kFloat);
  const Outcome actual = run(with, 0.01, 1, 0);
  const at::Tensor valid = with.targets.ge(0).nonzero().squeeze(1);
  Case without;
  without.x = with.x.detach().index_select(0, valid).set_requires_grad(true);
  without.weight = with.weight.detach().clone().set_requires_grad(true);
  without.targets = with.targets.index_select(0, valid);
  const Outcome expected = run(without, 0.01, 1, 0);
  CHECK(actual.loss == expected.loss);
  CHECK(at::equal(actual.dw, expected.dw));
  CHECK(at::equal(actual.dx.index_select(0, valid), expected.dx));
  CHECK(actual.dx[1].abs().max().item<double>() == 0);
}

TEST_CASE("linear_cross_entropy is finite for large logits and returns NaN if an input is NaN") {
  const at::ScalarType dtype = GENERATE(at::kFloat, at::kBFloat16);
  Case c = make_case(4, 2, 40, dtype, false);
  {
    const at::NoGradGuard no_grad;
    c.weight.mul_(10000);
  }
  const Outcome large = run(c, 0, 1, 0);
  CHECK(std::isfinite(large.loss));
  CHECK(at::isfinite(large.dw).all().item<bool>());
  const Outcome expected = by_definition(c, 0, 1);
  CHECK(large.loss == Approx(expected.loss).epsilon(1e-2));
  {
    const at::NoGradGuard no_grad;
    c.x[2][0] = std::numeric_limits<float>::quiet_NaN();
  }
  CHECK(std::isnan(run(c, 0, 1, 0).loss));
}

TEST_CASE("linear_cross_entropy does not depend on the number of threads") {
  const int before = at::get_num_threads();
  const Case c = make_case(33, 8, 5000, at::kFloat);
  at::set_num_threads(1);
  const auto one = linear_cross_entropy(c.x.detach(), c.weight.detach(), c.targets).first;
  at::set_num_threads(3);
  const auto three = linear_cross_entropy(c.x.detach(), c.weight.detach(), c.targets).first;
  at::set_num_threads(before);
  CHECK(one.item<float>() == Approx(three.item<float>()).epsilon(1e-6));
}

TEST_CASE("linear_cross_entropy reports a target outside the vocabulary") {
  Case c = make_case(4, 2, 10, at::kFloat);
  c.targets[0] = 10;
  REQUIRE_THROWS_WITH(linear_cross_entropy(c.x, c.weight, c.targets),
                      Catch::Contains("target 10") && Catch::Contains("vocabulary of 10"));
}

TEST_CASE("linear_cross_entropy computes only required gradients") {
  Case c = make_case(6, 4, 11, at::kFloat);
  c.weight.set_requires_grad(false);
  const auto loss = linear_cross_entropy(c.x, c.weight, c.targets).first;
  torch::autograd::backward({loss}, {});
  CHECK(c.x.grad().defined());
  CHECK_FALSE(c.weight.grad().defined());
  const at::NoGradGuard no_grad;
  CHECK_FALSE(linear_cross_entropy(c.x, c.weight, c.targets).first.requires_grad());
}

TEST_CASE("add_loss returns its input and adds the gradient of the auxiliary loss") {
  const at::Tensor a = at::arange(1.0, 5.0, at::kDouble).set_requires_grad(true);
  const at::Tensor b = at::arange(2.0, 4.0, at::kDouble).set_requires_grad(true);
  const at::Tensor y = add_loss(a * 2, b.square().sum() + a.sum(), 0.25);
  CHECK(at::equal(y, (a * 2).detach()));
  torch::autograd::backward({(y * 3).sum()}, {});
  CHECK(at::allclose(a.grad(), at::full({4}, 6.25, at::kDouble)));
  CHECK(at::allclose(b.grad(), b.detach() * 0.5));  // not times 3
}

TEST_CASE("add_loss works if only one input requires a gradient") {
  const at::Tensor constant = at::ones({2});
  const at::Tensor a = at::ones({2}).set_requires_grad(true);
  torch::autograd::backward({add_loss(constant, a.sum(), 2).sum()}, {});
  CHECK(at::equal(a.grad(), at::full({2}, 2.0f)));
  CHECK(add_loss(a, constant.sum(), 2).is_same(a));
  const at::NoGradGuard no_grad;
  CHECK(add_loss(a, a.sum(), 2).is_same(a));
}

TEST_CASE("the result of add_loss can be modified in place") {
  const at::Tensor a = at::ones({3}).set_requires_grad(true);
  at::Tensor y = add_loss(a * 2, a.sum(), 1);
  y.mul_(5);
  torch::autograd::backward({y.sum()}, {});
  CHECK(at::equal(a.grad(), at::full({3}, 11.0f)));
}

}  // namespace
}  // namespace dsv3
