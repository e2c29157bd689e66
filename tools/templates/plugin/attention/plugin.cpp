// attention/@NAME@: causal multi-head attention (Vaswani et al., arXiv 1706.03762).
#include <cmath>
#include <memory>

#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

// Member initialisers are the default values. `describe` declares the options that an experiment
// can set.
struct Options {
  int64_t heads = 4;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("heads", &Options::heads, "attention heads").min(1).shared("attention heads");
  }
};

class SelfAttention final : public dsv3::Attention {
 public:
  using Options = ::Options;

  // Declares parameters but does not initialise them, because the constructor also runs on the meta
  // device.
  SelfAttention(const Options& options, const dsv3::LayerContext& context)
      : Attention(context), heads_(options.heads) {
    const int64_t hidden = context.dims.hidden;
    if (hidden % heads_ != 0)  // reported at the option whose name comes first
      throw dsv3::Error("heads (" + std::to_string(heads_) + ") must divide model.hidden (" +
                            std::to_string(hidden) + ")",
                        dsv3::ExitCode::usage);
    head_dim_ = hidden / heads_;
    position_ = dsv3::position_of(context, "heads", head_dim_);
    scale_ = position_->softmax_scale() / std::sqrt(static_cast<double>(head_dim_));
    query_ = dsv3::Linear(*this, "q", hidden, hidden);
    key_ = dsv3::Linear(*this, "k", hidden, hidden);
    value_ = dsv3::Linear(*this, "v", hidden, hidden);
    out_ = dsv3::Linear(*this, "o", hidden, hidden);
  }

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    const int64_t hidden = context().dims.hidden;
    const std::vector<int64_t> split{heads_, head_dim_};
    at::Tensor q = query_(x).unflatten(2, split);  // [B, T, H, head_dim]
    at::Tensor k = key_(x).unflatten(2, split);
    at::Tensor v = value_(x).unflatten(2, split);
    std::tie(q, k) = position_->rotate(q, k, seq.positions);
    // attend() is causal and keeps documents separate.
    const auto mix = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
      return dsv3::attend(q, k, v, seq, {.scale = scale_}).flatten(2);
    };
    if (!seq.cache) return out_(mix(q, k, v));
    // During generation, each sequence in the batch also attends to its cached tokens.
    seq.cache->append(at::cat({k.flatten(2), v.flatten(2)}, -1));
    return out_(seq.cache->each_row(q, [&](const at::Tensor& row_q, const at::Tensor& all) {
      return mix(row_q, all.narrow(2, 0, hidden).unflatten(2, split),
                 all.narrow(2, hidden, hidden).unflatten(2, split));
    }));
  }

  int64_t cache_values_per_token() const override { return 2 * heads_ * head_dim_; }

 private:
  int64_t heads_, head_dim_;
  double scale_;
  std::shared_ptr<dsv3::Position> position_;
  dsv3::Linear query_, key_, value_, out_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.attention<SelfAttention>("@NAME@", "@NAME@, based on the attention template");
}
