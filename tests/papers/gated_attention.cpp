// Gated attention: a sigmoid gate for each head, on the output of scaled dot-product attention (Qiu
// et al., arXiv 2505.06708).
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct Options {
  int64_t heads = 4;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("heads", &Options::heads, "number of attention heads").min(1);
  }
};

class GatedAttention final : public dsv3::Attention {
 public:
  using Options = ::Options;
  GatedAttention(const Options& options, const dsv3::LayerContext& context)
      : Attention(context), heads_(options.heads), hidden_(context.dims.hidden) {
    if (hidden_ % heads_ != 0)
      throw dsv3::Error("heads does not divide model.hidden", dsv3::ExitCode::usage);
    position_ = dsv3::position_of(context, "heads", hidden_ / heads_);
    qkv_ = dsv3::Linear(*this, "qkv", hidden_, 3 * hidden_, {.matrices = 3});
    gate_ = dsv3::Linear(*this, "gate", hidden_, heads_);
    out_ = dsv3::Linear(*this, "o", hidden_, hidden_);
  }

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    const std::vector<at::Tensor> parts = qkv_(x).unflatten(2, {3, heads_, -1}).unbind(2);
    const auto [q, k] = position_->rotate(parts[0], parts[1], seq.positions);
    const double scale = position_->softmax_scale() / std::sqrt(double(hidden_ / heads_));
    at::Tensor y;  // [B, T, H, head_dim]
    if (seq.cache) {
      seq.cache->append(at::cat({k, parts[2]}, 2).flatten(2));
      y = seq.cache->each_row(q, [&](const at::Tensor& row_q, const at::Tensor& all) {
        const std::vector<at::Tensor> kv = all.unflatten(2, {2, heads_, -1}).unbind(2);
        return dsv3::attend(row_q, kv[0], kv[1], seq, {.scale = scale});
      });
    } else {
      y = dsv3::attend(q, k, parts[2], seq, {.scale = scale});
    }
    return out_((y * gate_(x).sigmoid().unsqueeze(3)).flatten(2));
  }

  int64_t cache_values_per_token() const override { return 2 * hidden_; }

 private:
  int64_t heads_, hidden_;
  std::shared_ptr<dsv3::Position> position_;
  dsv3::Linear qkv_, gate_, out_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.attention<GatedAttention>("gated_attention", "Attention with a gate for each head");
}
