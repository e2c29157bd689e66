// Squared ReLU (Primer, arXiv 2109.08668) that records the share of active neurons (The Lazy Neuron
// Phenomenon, arXiv 2210.06313).
#include <ATen/ATen.h>

#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  int64_t hidden = 128;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("hidden", &Options::hidden, "inner width").min(1);
    s.metric("relu/active", "fraction", "share of positive activations, over all layers");
    s.metric("relu/active/<layer>", "fraction", "share of positive activations in one layer");
  }
};

class SparseRelu final : public dsv3::FeedForward {
 public:
  using Options = ::Options;
  SparseRelu(const Options& options, const dsv3::LayerContext& context)
      : FeedForward(context), hidden_(options.hidden) {
    up_ = dsv3::Linear(*this, "up", context.dims.hidden, hidden_);
    down_ = dsv3::Linear(*this, "down", hidden_, context.dims.hidden);
  }
  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    const at::Tensor active = up_(x).relu();
    if (seq.metrics.wanted()) {
      const at::Tensor share = active.detach().gt(0).to(at::kFloat).mean();
      seq.metrics.scalar("relu/active", share);
      seq.metrics.scalar("relu/active/" + std::to_string(context().layer), share);
    }
    return down_(active.square());
  }

 private:
  int64_t hidden_;
  dsv3::Linear up_, down_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.feed_forward<SparseRelu>("sparse_relu", "Squared ReLU that records its sparsity");
}
