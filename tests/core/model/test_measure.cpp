// Measurements on the meta device. tests/e2e/test_memory.py compares them with real runs.
#include <catch2/catch.hpp>

#include <dsv3/sdk/ops.h>

#include "model/measure.h"
#include "tiny.h"

namespace dsv3::test {
namespace {

constexpr int64_t kHidden = 16, kSequence = 32, kWindow = 8;

class NoRotation final : public Position {
 public:
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor&) const override {
    return {q, k};
  }
};

/// Attention within a window, without projections.
class WindowAttention final : public Attention {
 public:
  explicit WindowAttention(const LayerContext& context) : Attention(context) {}
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    const at::Tensor heads = x.unsqueeze(2);
    return attend(heads, heads, heads, seq, {.window = kWindow}).squeeze(2);
  }
  int64_t cache_values_per_token() const override { return context().dims.hidden; }
};

/// Reads a value on the host, which is impossible on the meta device.
class HostRead final : public FeedForward {
 public:
  explicit HostRead(const LayerContext& context) : FeedForward(context) {}
  at::Tensor forward(const at::Tensor& x, const Sequence&) override {
    return x * x.max().item<double>();
  }
};

Experiment experiment_of(int64_t layers = 2) {
  Experiment experiment = tiny_experiment();
  experiment.model.hidden = kHidden;
  experiment.model.layers = layers;
  experiment.train.sequence = kSequence;
  experiment.train.precision = "fp32";
  experiment.mtp.depth = 0;
  return experiment;
}

template <class Layer>
ModelFactory with_attention() {
  ModelFactory factory = tiny_factory();
  factory.attention = [](const LayerContext& c) { return std::make_shared<Layer>(c); };
  factory.position = [](const PositionContext&) { return std::make_shared<NoRotation>(); };
  return factory;
}

int64_t activations(const Experiment& experiment, int64_t rows, bool recompute = false,
                    at::DeviceType device = at::kCUDA) {
  const ModelFactory factory = with_attention<conformance::RotaryAttention>();
  return Measurement(experiment, tiny_vocab, factory).activation_bytes(rows, device, recompute);
}

TEST_CASE("FLOPs include attention scores, with and without the masked ones") {
  const Experiment experiment = experiment_of();
  // Forward and backward: 3 passes of 4 d^2 (attention) + 4 d^2 (feed-forward) weights per layer,
  // and the head.
  const double d = kHidden, matrices = 2 * 8 * d * d + tiny_vocab * d;
  const double pair = 3 * 2 * 2 * 2 * d;  // 2 layers, scores and values, 2 FLOPs per feature
  SECTION("all pairs") {
    const ModelFactory factory = with_attention<conformance::RotaryAttention>();
    const Flops flops = Measurement(experiment, tiny_vocab, factory).flops_per_token();
    CHECK(flops.all == Approx(6 * matrices + pair * kSequence));
    CHECK(flops.causal == Approx(6 * matrices + pair * kSequence / 2));
  }
}

TEST_CASE("FLOPs of attention within a window do not grow with the sequence") {
  const auto attention_flops = [](int64_t sequence) {
    Experiment experiment = experiment_of();
    experiment.train.sequence = sequence;
    const ModelFactory factory = with_attention<WindowAttention>();
    const double all = Measurement(experiment, tiny_vocab, factory).flops_per_token().all;
    experiment.train.sequence = 2;
    return all - Measurement(experiment, tiny_vocab, factory).flops_per_token().all;
  };
  const double shorter = attention_flops(2048), longer = attention_flops(8192);
  CHECK(shorter > 0);
  CHECK(longer < 1.1 * shorter);
}

TEST_CASE("activations grow with rows and layers, and recomputation saves most of them") {
  const int64_t one = activations(experiment_of(), 8), two = activations(experiment_of(), 16);
  CHECK(two > 1.8 * one);
  CHECK(two < 2.1 * one);
  const int64_t deep = activations(experiment_of(12), 8);
  CHECK(deep > 4 * one);
  CHECK(activations(experiment_of(12), 8, true) < deep / 3);
  CHECK(activations(experiment_of(), 8, false, at::kCPU) > 0);
}

TEST_CASE("a component that reads values on the host cannot be measured") {
  const Experiment experiment = experiment_of();
  ModelFactory factory = tiny_factory();
  factory.feed_forward = [](const LayerContext& c) { return std::make_shared<HostRead>(c); };
  CHECK_THROWS_AS(Measurement(experiment, tiny_vocab, factory).flops_per_token(), Error);
  const Model model(experiment, tiny_vocab, factory, at::kMeta);
  const ModelFigures unknown = figures(model, experiment, factory);
  CHECK(unknown.flops_per_token == 0);
  CHECK(unknown.flops_unknown.find("eta") != std::string::npos);
  CHECK(unknown.total > 0);
}

}  // namespace
}  // namespace dsv3::test
