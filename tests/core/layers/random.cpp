// Tests random numbers and dropout: statistics, and what the numbers depend on.
#include <cmath>

#include <catch2/catch.hpp>

#include <dsv3/sdk/random.h>

#include "layers.h"

using dsv3::StepKey;
using test::normal;

namespace {

constexpr int64_t kRows = 40, kWidth = 2500, kCount = kRows * kWidth;
const StepKey kKey{.seed = 7, .step = 3, .first_row = 8, .layer = 2, .sublayer = 1};

at::Tensor draw(const StepKey& key, int64_t stream = 0) {
  return dsv3::uniform(key, {kRows, kWidth}, at::kCPU, stream);
}

// The correlation of two draws times sqrt(n), which is about standard normal if they are
// independent.
double dependence(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble).flatten() - 0.5, y = b.to(at::kDouble).flatten() - 0.5;
  return std::abs((x * y).sum().item<double>()) * 12 / std::sqrt(double(x.numel()));
}

}  // namespace

TEST_CASE("uniform draws evenly distributed numbers") {
  const at::Tensor u = draw(kKey);
  CHECK(u.scalar_type() == at::kFloat);
  CHECK(u.min().item<float>() >= 0);
  CHECK(u.max().item<float>() < 1);
  const at::Tensor wide = u.to(at::kDouble);
  const double sigma = 1 / std::sqrt(12.0 * kCount);
  CHECK(std::abs(wide.mean().item<double>() - 0.5) < 5 * sigma);
  CHECK(wide.var().item<double>() == Approx(1 / 12.0).epsilon(0.02));
  // Chi-square with 99 degrees of freedom: mean 99, standard deviation 14.
  const at::Tensor counts = at::histc(u, 100, 0, 1).to(at::kDouble);
  const double expected = double(kCount) / 100;
  CHECK((counts - expected).square().sum().item<double>() / expected < 99 + 6 * 14);
}

TEST_CASE("uniform draws independent numbers for neighbouring elements and rows") {
  const at::Tensor u = draw(kKey);
  for (const int64_t lag : {1, 2, 7})
    CHECK(dependence(u.narrow(1, 0, kWidth - lag), u.narrow(1, lag, kWidth - lag)) < 5);
  CHECK(dependence(u.narrow(0, 0, kRows - 1), u.narrow(0, 1, kRows - 1)) < 5);
}

TEST_CASE("uniform draws independent numbers for every part of the key") {
  std::vector<at::Tensor> draws{draw(kKey), draw(kKey, 1), draw(kKey, 2)};
  const auto add = [&](auto member, auto value) {
    StepKey key = kKey;
    key.*member = value;
    draws.push_back(draw(key));
  };
  add(&StepKey::seed, 8);
  add(&StepKey::step, 4);
  add(&StepKey::layer, 3);
  add(&StepKey::layer, 1);
  add(&StepKey::sublayer, 0);
  add(&StepKey::first_row, 8 + kRows);
  for (size_t i = 0; i < draws.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK(dependence(draws[i], draws[j]) < 5);
  CHECK(at::equal(draws[0], draw(kKey)));
}

TEST_CASE("uniform does not depend on how rows are split into micro-batches") {
  const at::Tensor all = dsv3::uniform(kKey, {6, 3, 5}, at::kCPU);
  StepKey second = kKey;
  second.first_row += 4;
  CHECK(at::equal(all.narrow(0, 0, 4), dsv3::uniform(kKey, {4, 3, 5}, at::kCPU)));
  CHECK(at::equal(all.narrow(0, 4, 2), dsv3::uniform(second, {2, 3, 5}, at::kCPU)));
}

TEST_CASE("dropout drops a share of the elements and scales the others") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const double p = GENERATE(0.1, 0.75);
  dsv3::Sequence seq = test::sequence(kRows, kWidth);
  seq.key = kKey;
  const at::Tensor x = normal({kRows, kWidth}, 1, dtype).abs().add_(1).requires_grad_();
  const at::Tensor y = dsv3::dropout(x, p, seq);
  CHECK(y.scalar_type() == dtype);
  const at::Tensor dropped = y.eq(0);
  const double share = dropped.sum().item<double>() / double(kCount);
  CHECK(std::abs(share - p) < 5 * std::sqrt(p * (1 - p) / double(kCount)));
  const at::Tensor scaled = (x.detach().to(at::kDouble) / (1 - p)).to(dtype);
  const double ulp = dtype == at::kBFloat16 ? 0.004 : dtype == at::kFloat ? 1e-6 : 1e-14;
  CHECK(at::allclose(y.masked_select(dropped.logical_not()),
                     scaled.masked_select(dropped.logical_not()), ulp, 0));
  const at::Tensor dx = test::gradients(y, {x}, at::ones_like(y))[0];
  CHECK(at::equal(dx.eq(0), dropped));
  CHECK(dx.max().item<double>() == Approx(1 / (1 - p)).epsilon(0.004));
}

TEST_CASE("dropout repeats itself when a forward pass is recomputed") {
  dsv3::Sequence seq = test::sequence(2, 8);
  seq.key = kKey;
  const at::Tensor x = normal({2, 8, 16}, 2);
  const at::Tensor y = dsv3::dropout(x, 0.5, seq);
  seq.recompute = true;
  CHECK(at::equal(dsv3::dropout(x, 0.5, seq), y));
  CHECK_FALSE(at::equal(dsv3::dropout(x, 0.5, seq, 1), y));
}

TEST_CASE("dropout changes nothing outside of training, and rejects invalid probabilities") {
  dsv3::Sequence seq = test::sequence(2, 8);
  const at::Tensor x = normal({2, 8, 16}, 3);
  CHECK(dsv3::dropout(x, 0, seq).is_same(x));
  for (const double p : {-0.1, 1.0, std::nan("")})
    CHECK_THROWS_WITH(dsv3::dropout(x, p, seq), Catch::Contains("at least 0 and below 1"));
  seq.training = false;
  CHECK(dsv3::dropout(x, 0.5, seq).is_same(x));
}
