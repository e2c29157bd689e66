// SwiGLU (Shazeer, arXiv 2002.05202) with dropout (Srivastava et al., 2014) of its inner features.
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/random.h>

namespace {

struct Options {
  int64_t hidden = 96;
  double dropout = 0.1;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("hidden", &Options::hidden, "inner width").min(1);
    s.add("dropout", &Options::dropout, "probability of dropping an inner feature")
        .min(0)
        .max(0.99);
  }
};

class SwigluDropout final : public dsv3::FeedForward {
 public:
  using Options = ::Options;
  SwigluDropout(const Options& options, const dsv3::LayerContext& context)
      : FeedForward(context), o_(options) {
    const int64_t width = context.dims.hidden;
    gate_up_ = dsv3::Linear(*this, "gate_up", width, 2 * o_.hidden, {.matrices = 2});
    down_ = dsv3::Linear(*this, "down", o_.hidden, width);
  }
  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    return down_(dsv3::dropout(dsv3::swiglu(gate_up_(x)), o_.dropout, seq));
  }

 private:
  Options o_;
  dsv3::Linear gate_up_, down_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.feed_forward<SwigluDropout>("swiglu_dropout", "SwiGLU with dropout");
}
