// Dense gated feed-forward layer.
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct SwigluOptions {
  int64_t hidden = 0;
  static void describe(dsv3::OptionSchema<SwigluOptions>& s) {
    s.add("hidden", &SwigluOptions::hidden,
          "inner width; auto = 8/3 of model.hidden, rounded up to a multiple of 64")
        .min(0)
        .max(1 << 20)
        .word("auto", 0);
  }
};

class Swiglu final : public dsv3::FeedForward {
 public:
  using Options = SwigluOptions;
  Swiglu(const SwigluOptions& options, const dsv3::LayerContext& context) : FeedForward(context) {
    const int64_t width = context.dims.hidden;
    hidden_ = options.hidden > 0 ? options.hidden : (8 * width + 3 * 64 - 1) / (3 * 64) * 64;
    dsv3::ParamSpec stacked;
    stacked.matrices = 2;  // gate above up
    gate_up_ = dsv3::Linear(*this, "gate_up", width, 2 * hidden_, stacked);
    down_ = dsv3::Linear(*this, "down", hidden_, width);
  }

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence&) override {
    return down_(dsv3::swiglu(gate_up_(x)));
  }

 private:
  int64_t hidden_;
  dsv3::Linear gate_up_, down_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.feed_forward<Swiglu>("swiglu", "Dense gated feed-forward (SwiGLU)");
}
