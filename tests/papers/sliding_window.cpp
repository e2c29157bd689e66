// Sliding-window attention with a learned sink for each head, as in gpt-oss (arXiv 2508.10925).
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct Options {
  int64_t heads = 4, window = 128;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("heads", &Options::heads, "number of attention heads").min(1);
    s.add("window", &Options::window, "number of tokens that a token attends to, with itself")
        .min(1);
    s.metric("attention/max_logit", "", "largest attention score of sampled queries");
  }
};

class SlidingWindow final : public dsv3::Attention {
 public:
  using Options = ::Options;
  SlidingWindow(const Options& options, const dsv3::LayerContext& context)
      : Attention(context), o_(options), hidden_(context.dims.hidden) {
    if (hidden_ % o_.heads != 0)
      throw dsv3::Error("heads does not divide model.hidden", dsv3::ExitCode::usage);
    position_ = dsv3::position_of(context, "heads", hidden_ / o_.heads);
    qkv_ = dsv3::Linear(*this, "qkv", hidden_, 3 * hidden_, {.matrices = 3});
    out_ = dsv3::Linear(*this, "o", hidden_, hidden_);
    sinks_ =
        parameter("sinks", {o_.heads}, {.role = dsv3::Role::bias, .init = dsv3::Init::zeros()});
  }

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    const std::vector<at::Tensor> parts = qkv_(x).unflatten(2, {3, o_.heads, -1}).unbind(2);
    const auto [q, k] = position_->rotate(parts[0], parts[1], seq.positions);
    const double scale = position_->softmax_scale() / std::sqrt(double(hidden_ / o_.heads));
    const dsv3::AttendOptions options{.scale = scale, .window = o_.window, .sinks = sinks_};
    if (!seq.cache) return out_(dsv3::attend(q, k, parts[2], seq, options).flatten(2));
    seq.cache->append(at::cat({k, parts[2]}, 2).flatten(2));
    return out_(seq.cache->each_row(q, [&](const at::Tensor& row_q, const at::Tensor& all) {
      const std::vector<at::Tensor> kv = all.unflatten(2, {2, o_.heads, -1}).unbind(2);
      return dsv3::attend(row_q, kv[0], kv[1], seq, options).flatten(2);
    }));
  }

  int64_t cache_values_per_token() const override { return 2 * hidden_; }
  std::optional<int64_t> cache_window() const override { return o_.window; }

 private:
  Options o_;
  int64_t hidden_;
  std::shared_ptr<dsv3::Position> position_;
  dsv3::Linear qkv_, out_;
  at::Tensor sinks_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.attention<SlidingWindow>("sliding_window", "Sliding-window attention with sinks");
}
