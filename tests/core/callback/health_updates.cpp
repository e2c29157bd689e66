// Statistics that the health callback computes from updates.
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <catch2/catch.hpp>

#include "../../../plugins/callback/health/updates.cpp"
#include "ranks/recorded_metrics.h"

using dsv3::ParameterUpdate;
using dsv3::Range;

namespace {

at::Tensor normal(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed));
}

Range whole(const std::string& name, std::vector<int64_t> shape) {
  const std::vector<int64_t> zeros(shape.size());
  return {name, shape, zeros, shape, 0, c10::multiply_integers(shape)};
}

ParameterUpdate update(const Range& range, const at::Tensor& grad, const at::Tensor& change,
                       const at::Tensor& value, bool whole_matrices = false) {
  return {range, dsv3::Role::matrix, "test", whole_matrices, grad, change, value};
}

/// Collects what record() records, by name.
class Recorded {
 public:
  Recorded() { sink_->open(); }
  void add(const std::vector<ParameterUpdate>& updates, int64_t max_layers = 64) {
    health::record(updates, max_layers, dsv3::Metrics(sink_));
  }
  std::map<std::string, double> take() {
    const auto recorded = take_metrics(*sink_, {}, at::kCPU);
    std::map<std::string, double> values;
    for (size_t i = 0; i < recorded.names.size(); ++i)
      values[recorded.names[i]] = recorded.values[int64_t(i)].item<double>();
    return values;
  }

 private:
  std::shared_ptr<dsv3::MetricSink> sink_ = std::make_shared<dsv3::MetricSink>();
};

double rms(const at::Tensor& x) {
  return x.to(at::kDouble).square().mean().sqrt().item<double>();
}

}  // namespace

TEST_CASE("parameters are summarised by layer") {
  CHECK(health::key_of("layers.3.attention.q.weight", 64) == "3");
  CHECK(health::key_of("layers.63.attention.q.weight", 64) == "63");
  CHECK(health::key_of("layers.64.attention.q.weight", 64) == "rest");
  CHECK(health::key_of("embedding.weight", 64) == "embedding");
  CHECK(health::key_of("norm", 64) == "norm");
}

TEST_CASE("pieces of a layer combine to the root mean square of all its matrices") {
  const at::Tensor grad = normal({8, 6}, 1), change = normal({8, 6}, 2), value = normal({8, 6}, 3);
  const at::Tensor other = normal({5, 3}, 4);
  const Range q = whole("layers.1.attention.q.weight", {8, 6});
  const Range o = whole("layers.1.attention.o.weight", {5, 3});
  const Range norm = whole("layers.1.attention_norm.weight", {6});
  Recorded recorded;
  const auto piece = [&](int64_t begin, int64_t end) {
    const auto part = [&](const at::Tensor& x) { return x.flatten().slice(0, begin, end); };
    return update(q, part(grad), part(change), part(value));
  };
  recorded.add({piece(0, 11), update(o, other, other * 2, other * 3)});
  recorded.add({piece(11, 48), update(norm, normal({6}, 5), normal({6}, 6), normal({6}, 7))});
  const auto values = recorded.take();
  const auto both = [&](const at::Tensor& x, double factor) {
    return rms(at::cat({x.flatten(), other.flatten() * factor}));
  };
  CHECK(values.at("health/grad_rms/1") == Approx(both(grad, 1)));
  CHECK(values.at("health/update_rms/1") == Approx(both(change, 2)));
  CHECK(values.at("health/weight_rms/1") == Approx(both(value, 3)));
}

TEST_CASE("parameters with a gradient of 0 are counted, except for stacked experts") {
  const Range q = whole("layers.0.attention.q.weight", {4, 4});
  const Range norm = whole("layers.0.feed_forward_norm.weight", {4});
  const Range expert = whole("layers.0.feed_forward.experts.down.weight", {2, 4, 4});
  const at::Tensor x = normal({4, 4}, 1), zeros = at::zeros({4, 4});
  Recorded recorded;
  recorded.add({update(q, zeros, x, x), update(norm, at::zeros({4}), x[0], x[0]),
                update(expert, zeros, x, x)});
  CHECK(recorded.take().at("health/zero_gradients/0") == 2);
  recorded = {};
  recorded.add({update(q, x, x, x), update(expert, zeros, x, x)});
  CHECK(recorded.take().at("health/zero_gradients/0") == 0);
}

TEST_CASE("the number of keys does not grow with the number of layers") {
  Recorded recorded;
  for (int64_t layer = 0; layer < 100; ++layer) {
    const at::Tensor x = normal({4, 4}, uint64_t(layer));
    const Range range = whole("layers." + std::to_string(layer) + ".q", {4, 4});
    recorded.add({update(range, x, x, x)}, 3);
  }
  CHECK(recorded.take().size() == 4 * 4);  // of layers 0, 1, 2 and the rest
}

TEST_CASE("a block of rows with small updates stands out") {
  const auto ratio = [](at::Tensor x, int64_t begin, int64_t end, double factor) {
    x.slice(0, begin, end).mul_(factor);
    return health::block_ratio({normal({48, 20}, 9), x}).item<double>();
  };
  CHECK(ratio(normal({96, 40}, 1), 0, 96, 0.01) < 1.1);
  const double fused = ratio(normal({96, 40}, 1), 0, 64, 0.05);  // queries and keys
  CHECK(fused > 10);
  CHECK(fused < 30);
  CHECK(ratio(normal({96, 40}, 1), 64, 96, 0.05) > 10);
  CHECK(ratio(normal({40, 40}, 1), 0, 29, 0.05) > 10);  // not a multiple of the bands
  CHECK(ratio(normal({96, 40}, 1), 0, 96, 0) < 1.1);
  CHECK(std::isfinite(ratio(normal({96, 40}, 1), 0, 48, 0)));
  // Rows of small and large updates alternate by head, as in the kv_b of MLA.
  at::Tensor heads = normal({4, 24, 40}, 1);
  heads.narrow(1, 0, 12).mul_(0.05);
  CHECK(ratio(heads.view({96, 40}), 0, 96, 1) < 1.1);
}

TEST_CASE("only whole, tall matrices of an optimizer for matrices are compared by rows") {
  const auto compared = [](const Range& range, at::IntArrayRef piece, bool whole_matrices) {
    const at::Tensor x = normal(piece, 1);
    Recorded recorded;
    recorded.add({update(range, x, x, x, whole_matrices)});
    return recorded.take().contains("health/block_ratio/0");
  };
  CHECK(compared(whole("layers.0.q", {48, 8}), {48, 8}, true));
  CHECK(!compared(whole("layers.0.q", {48, 8}), {384}, false));
  CHECK(!compared(whole("layers.0.gate_up", {96, 8}), {48, 8}, true));  // one of two matrices
  CHECK(!compared(whole("layers.0.q", {48, 96}), {48, 96}, true));
  CHECK(!compared(whole("layers.0.q", {20, 4}), {20, 4}, true));  // too few rows
}

TEST_CASE("routers do not count towards a layer's root mean squares") {
  const at::Tensor x = normal({8, 4}, 1), large = normal({4, 4}, 2) * 100;
  const Range q = whole("layers.0.q", {8, 4}), r = whole("layers.0.router", {4, 4});
  ParameterUpdate router = update(r, large, large, large);
  router.role = dsv3::Role::router;
  Recorded recorded;
  recorded.add({update(q, x, x, x), router});
  CHECK(recorded.take().at("health/grad_rms/0") == Approx(rms(x)));
}
