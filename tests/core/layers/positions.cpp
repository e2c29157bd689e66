// Compares positional encodings with the equations in their papers.
#include <cmath>

#include <catch2/catch.hpp>

#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/error.h>

#include "layers.h"

using test::difference;
using test::normal;

namespace {

// Rotates pair i of x [B, T, H, R] by position * frequency_i and multiplies by `scale`.
at::Tensor turned(const at::Tensor& x, const at::Tensor& positions,
                  const std::vector<double>& frequencies, double scale, bool interleaved) {
  const int64_t half = static_cast<int64_t>(frequencies.size());
  at::Tensor y = at::empty_like(x);
  auto from = x.accessor<double, 4>();
  auto to = y.accessor<double, 4>();
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t t = 0; t < x.size(1); ++t)
      for (int64_t h = 0; h < x.size(2); ++h)
        for (int64_t i = 0; i < half; ++i) {
          const double angle = positions[b][t].item<double>() * frequencies[i];
          const int64_t first = interleaved ? 2 * i : i,
                        second = interleaved ? 2 * i + 1 : i + half;
          const double a = from[b][t][h][first], c = from[b][t][h][second];
          to[b][t][h][first] = scale * (a * std::cos(angle) - c * std::sin(angle));
          to[b][t][h][second] = scale * (a * std::sin(angle) + c * std::cos(angle));
        }
  return y;
}

std::vector<double> plain_frequencies(int64_t dim, double theta) {
  std::vector<double> frequencies;
  for (int64_t i = 0; i < dim / 2; ++i) frequencies.push_back(1 / std::pow(theta, 2.0 * i / dim));
  return frequencies;
}

}  // namespace

TEST_CASE("rope rotates pair i by the angle position * theta^(-2i/R)") {
  const std::string layout = GENERATE("interleaved", "half");
  const auto rope = test::make_position("rope", {{"theta", 500.0}, {"layout", layout}}, 6);
  const at::Tensor positions = at::tensor({0, 1, 2, 0, 1, 900, 3, 4, 5, 6}, at::kLong).view({2, 5});
  const at::Tensor q = normal({2, 5, 3, 6}, 1), k = normal({2, 5, 1, 6}, 2);
  const auto [rq, rk] = rope->rotate(q, k, positions);
  const auto frequencies = plain_frequencies(6, 500);
  CHECK(difference(rq, turned(q, positions, frequencies, 1, layout == "interleaved")) < 1e-12);
  CHECK(difference(rk, turned(k, positions, frequencies, 1, layout == "interleaved")) < 1e-12);
  CHECK(rope->softmax_scale() == 1);
  const auto [bq, bk] = rope->rotate(q.to(at::kBFloat16), k.to(at::kBFloat16), positions);
  CHECK(bq.scalar_type() == at::kBFloat16);
  CHECK(difference(bq, rq) < 2e-2);
}

TEST_CASE("attention scores depend only on the distance between query and key") {
  const std::string name = GENERATE("rope", "yarn");
  const auto position = test::make_position(name, {}, 8);
  const at::Tensor q = normal({1, 1, 1, 8}, 3), k = normal({1, 1, 1, 8}, 4);
  const auto score = [&](int64_t at_q, int64_t at_k) {
    const at::Tensor p = at::full({1, 1}, at_q, at::kLong), r = at::full({1, 1}, at_k, at::kLong);
    return (position->rotate(q, q, p).first * position->rotate(k, k, r).first).sum().item<double>();
  };
  CHECK(score(7, 3) == Approx(score(1004, 1000)).epsilon(1e-9));
  CHECK(score(7, 3) != Approx(score(8, 3)).epsilon(1e-3));
}

// DeepSeek-V3's settings: 64 features, theta 10000, and a context of 4096 tokens extended by a
// factor of 40. Pair 64 ln(4096 / (n 2 pi)) / (2 ln 10000) completes n rotations within 4096
// tokens. YaRN's ramp starts at n = 32 (pair 10.47, rounded down to 10) and ends at n = 1 (pair
// 22.51, rounded up to 23).
TEST_CASE(
    "yarn keeps high frequencies, divides low frequencies by the factor, and interpolates in "
    "between") {
  const auto yarn = test::make_position("yarn", {}, 64);
  std::vector<double> frequencies = plain_frequencies(64, 10000);
  for (int i = 0; i < 32; ++i) {
    const double ramp = i <= 10 ? 0 : i >= 23 ? 1 : (i - 10) / 13.0;
    frequencies[i] *= (1 - ramp) + ramp / 40;
  }
  const at::Tensor positions = at::tensor({0, 1, 17, 4095, 60000}, at::kLong).view({1, 5});
  const at::Tensor q = normal({1, 5, 2, 64}, 5);
  CHECK(difference(yarn->rotate(q, q, positions).first,
                   turned(q, positions, frequencies, 1, true)) < 1e-9);
  const double m = 0.1 * std::log(40.0) + 1;
  CHECK(yarn->softmax_scale() == Approx(m * m));
}

TEST_CASE(
    "yarn derives the scales of rotated features and attention scores from mscale and "
    "mscale_all_dim") {
  const double factor = 8;
  const auto m = [&](double s) { return 0.1 * s * std::log(factor) + 1; };
  struct Case {
    double mscale, all_dim, angle_scale, softmax_scale;
  };
  const Case one = GENERATE_REF(Case{0.707, 1, m(0.707) / m(1), m(1) * m(1)}, Case{0, 0, m(1), 1},
                                Case{0.5, 0, m(1), 1}, Case{0, 2, m(1), m(2) * m(2)});
  const auto yarn = test::make_position(
      "yarn", {{"factor", factor}, {"mscale", one.mscale}, {"mscale_all_dim", one.all_dim}}, 8);
  CHECK(yarn->softmax_scale() == Approx(one.softmax_scale));
  // Position 0 is not rotated, so only the scale changes the features.
  const at::Tensor q = normal({1, 1, 1, 8}, 6);
  CHECK(difference(yarn->rotate(q, q, at::zeros({1, 1}, at::kLong)).first, q * one.angle_scale) <
        1e-12);
}

TEST_CASE("yarn with factor 1 equals rope") {
  const auto yarn =
      test::make_position("yarn", {{"factor", 1.0}, {"layout", std::string("half")}}, 8);
  const auto rope = test::make_position("rope", {{"layout", std::string("half")}}, 8);
  const at::Tensor q = normal({1, 9, 2, 8}, 7), positions = at::arange(9).unsqueeze(0);
  CHECK(difference(yarn->rotate(q, q, positions).first, rope->rotate(q, q, positions).first) <
        1e-12);
  CHECK(yarn->softmax_scale() == 1);
}

TEST_CASE("positional encoding 'none' does not change queries and keys") {
  const auto none = test::make_position("none", {}, 7);
  const at::Tensor q = normal({1, 2, 2, 7}, 8);
  CHECK(at::equal(none->rotate(q, q, at::arange(2).unsqueeze(0)).first, q));
}

TEST_CASE("rotation requires an even number of features") {
  CHECK_THROWS_AS(test::make_position("rope", {}, 7), dsv3::Error);
  CHECK_THROWS_AS(test::make_position("yarn", {}, 0), dsv3::Error);
}

TEST_CASE("rotation angles from the table match those computed directly") {
  const dsv3::Angles angles({1.0, 0.01}, 1.5, 4);
  const at::Tensor positions = at::tensor({0, 3, 4, 100000, 2, 9}, at::kLong).view({2, 3});
  const auto [cos, sin] = angles.at(positions, at::kDouble);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t t = 0; t < 3; ++t) {
      const double p = positions[b][t].item<double>();
      CHECK(cos[b][t][1].item<double>() == Approx(1.5 * std::cos(p * 0.01)));
      CHECK(sin[b][t][0].item<double>() == Approx(1.5 * std::sin(p)));
    }
  CHECK(angles.at(positions, at::kBFloat16).first.scalar_type() == at::kFloat);
  CHECK(angles.at(positions.to(at::kMeta), at::kFloat).first.sizes() == cos.sizes());
}
