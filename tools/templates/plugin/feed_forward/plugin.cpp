// feed_forward/@NAME@: down(gelu(gate(x)) * up(x)), the GEGLU of Shazeer (arXiv 2002.05202).
#include <ATen/ATen.h>

#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  int64_t hidden = 0;
  static void describe(dsv3::OptionSchema<Options>& s) {
    // word() adds a keyword, such as `auto`, for a special value.
    s.add("hidden", &Options::hidden, "inner width; auto = 3 times the hidden size")
        .min(0)
        .word("auto", 0);
  }
};

class GatedMlp final : public dsv3::FeedForward {
 public:
  using Options = ::Options;

  // Declares parameters but does not initialise them, because the constructor also runs on the meta
  // device.
  GatedMlp(const Options& options, const dsv3::LayerContext& context) : FeedForward(context) {
    const int64_t width = context.dims.hidden;
    hidden_ = options.hidden > 0 ? options.hidden : 3 * width;
    gate_ = dsv3::Linear(*this, "gate", width, hidden_);
    up_ = dsv3::Linear(*this, "up", width, hidden_);
    down_ = dsv3::Linear(*this, "down", hidden_, width);
  }

  // Processes each token separately, so documents cannot affect each other.
  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence&) override {
    return down_(at::gelu(gate_(x)) * up_(x));
  }

 private:
  int64_t hidden_;
  dsv3::Linear gate_, up_, down_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.feed_forward<GatedMlp>("@NAME@", "@NAME@, based on the feed_forward template");
}
