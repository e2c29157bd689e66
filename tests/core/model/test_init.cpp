#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/model.h>

namespace dsv3 {
namespace {

at::Tensor normal(int64_t size, const std::string& name, uint64_t seed, double std = 1,
                  int64_t first = 0, at::ScalarType dtype = at::kFloat) {
  at::Tensor tensor = at::full({size}, -99, dtype);
  initialise(tensor, name, Init::normal(std), 0.5, seed, first);
  return tensor;
}

double correlation(const at::Tensor& a, const at::Tensor& b) {
  return ((a - a.mean()) * (b - b.mean())).mean().item<double>() /
         (a.std().item<double>() * b.std().item<double>());
}

TEST_CASE("initial values are normally distributed with the given standard deviation") {
  const int64_t count = 1 << 20;
  const at::Tensor values = normal(count, "layers.0.attention.q.weight", 1, 0.02) / 0.02;
  CHECK(std::abs(values.mean().item<double>()) < 5 / std::sqrt(double(count)));
  CHECK(values.square().mean().item<double>() == Approx(1).epsilon(0.01));
  CHECK(std::abs(values.pow(3).mean().item<double>()) < 0.02);
  CHECK(values.pow(4).mean().item<double>() == Approx(3).epsilon(0.02));
  // Compares the empirical distribution function with the exact one, computed with erf.
  for (const double point : {-3.0, -1.5, -0.5, 0.0, 0.7, 2.0, 3.5}) {
    const double expected = 0.5 * (1 + std::erf(point / std::sqrt(2.0)));
    CHECK(values.lt(point).to(at::kDouble).mean().item<double>() ==
          Approx(expected).margin(2.5e-3));
  }
  CHECK(at::isfinite(values).all().item<bool>());
}

TEST_CASE("initial values for different names, seeds and indices are uncorrelated") {
  const int64_t count = 1 << 18;
  const double bound = 5 / std::sqrt(double(count));
  const at::Tensor a = normal(count, "a.weight", 1);
  CHECK(std::abs(correlation(a, normal(count, "b.weight", 1))) < bound);
  CHECK(std::abs(correlation(a, normal(count, "a.weight", 2))) < bound);
  for (const int64_t lag : {1, 2, 3, 4, 16})
    CHECK(std::abs(correlation(a.narrow(0, 0, count - lag), a.narrow(0, lag, count - lag))) <
          1.1 * bound);
}

TEST_CASE("initial values depend only on name, seed and index") {
  const at::Tensor whole = normal(100003, "layers.7.x", 5);
  CHECK(at::equal(whole, normal(100003, "layers.7.x", 5)));
  for (const int64_t first : {0, 1, 2, 3, 5, 4096, 99990}) {
    const int64_t size = std::min<int64_t>(20001, 100003 - first);
    CHECK(at::equal(normal(size, "layers.7.x", 5, 1, first), whole.narrow(0, first, size)));
  }
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = normal(100003, "layers.7.x", 5);
  at::set_num_threads(3);
  const at::Tensor three = normal(100003, "layers.7.x", 5);
  at::set_num_threads(before);
  CHECK(at::equal(one, whole));
  CHECK(at::equal(three, whole));
}

TEST_CASE("initial values are the same for any shape, stride or dtype") {
  const at::Tensor flat = normal(60, "w", 3);
  at::Tensor matrix = at::empty({6, 10}), strided = at::empty({10, 6}).t();
  initialise(matrix, "w", Init::normal(), 1.0, 3);
  initialise(strided, "w", Init::normal(), 1.0, 3);
  CHECK(at::equal(matrix.view({60}), flat));
  CHECK(at::equal(strided, matrix));
  CHECK(at::equal(normal(60, "w", 3, 1, 0, at::kDouble), flat.to(at::kDouble)));
}

TEST_CASE("initialise supports zeros, ones, the default standard deviation and the meta device") {
  at::Tensor tensor = at::full({5}, 7.0f);
  initialise(tensor, "w", Init::zeros(), 1, 1);
  CHECK(tensor.abs().sum().item<float>() == 0);
  initialise(tensor, "w", Init::ones(), 1, 1);
  CHECK(at::equal(tensor, at::ones({5})));
  at::Tensor leaf = at::zeros({4}).set_requires_grad(true);
  initialise(leaf, "w", Init::normal(), 0.25, 1);
  CHECK(at::allclose(leaf.detach(), normal(4, "w", 1, 1) * 0.25));
  CHECK(leaf.is_leaf());
  at::Tensor meta = at::empty({4}, at::TensorOptions().device(at::kMeta));
  initialise(meta, "w", Init::normal(), 1, 1);
  CHECK(meta.is_meta());
}

}  // namespace
}  // namespace dsv3
