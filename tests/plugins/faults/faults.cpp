// Components with faults in their declaration or their graph.
#include <cmath>
#include <cstdlib>

#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct FusedOptions {
  int64_t heads = 2, kv_heads = 2, matrices = 1;
  double scale = 1;

  static void describe(dsv3::OptionSchema<FusedOptions>& s) {
    s.add("heads", &FusedOptions::heads, "number of query heads").min(1);
    s.add("kv_heads", &FusedOptions::kv_heads, "number of key-value heads").min(1);
    s.add("matrices", &FusedOptions::matrices,
          "declared number of matrices in qkv; 3 is correct if kv_heads = heads")
        .min(1);
    s.add("scale", &FusedOptions::scale, "factor applied to the softmax scale; 1 is correct")
        .min(0);
  }
};

/// Attention whose queries, keys and values are one parameter, declared as `matrices` matrices.
class Fused final : public dsv3::Attention {
 public:
  using Options = FusedOptions;
  Fused(const FusedOptions& options, const dsv3::LayerContext& context)
      : Attention(context), o_(options), dim_(context.dims.hidden / options.heads) {
    dsv3::ParamSpec spec;
    spec.matrices = o_.matrices;
    qkv_ =
        dsv3::Linear(*this, "qkv", context.dims.hidden, (o_.heads + 2 * o_.kv_heads) * dim_, spec);
    out_ = dsv3::Linear(*this, "o", o_.heads * dim_, context.dims.hidden);
    position_ = dsv3::position_of(context, "heads", dim_);
  }

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    const std::vector<at::Tensor> parts =
        qkv_(x)
            .unflatten(-1, {o_.heads + 2 * o_.kv_heads, dim_})
            .split_with_sizes({o_.heads, o_.kv_heads, o_.kv_heads}, 2);
    const auto [q, k] = position_->rotate(parts[0], parts[1], seq.positions);
    const double scale = o_.scale / std::sqrt(double(dim_));
    return out_(dsv3::attend(q, k, parts[2], seq, {.scale = scale}).flatten(2));
  }
  int64_t cache_values_per_token() const override { return 2 * o_.kv_heads * dim_; }

 private:
  FusedOptions o_;
  int64_t dim_;
  dsv3::Linear qkv_, out_;
  std::shared_ptr<dsv3::Position> position_;
};

/// A linear layer whose output is detached, so that its weight gets a gradient of 0.
class Detached final : public dsv3::FeedForward {
 public:
  using Options = dsv3::NoOptions;
  Detached(const dsv3::NoOptions&, const dsv3::LayerContext& context) : FeedForward(context) {
    const int64_t width = context.dims.hidden;
    up_ = dsv3::Linear(*this, "up", width, 2 * width);
    down_ = dsv3::Linear(*this, "down", 2 * width, width);
  }
  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence&) override {
    return down_(up_(x).relu()).detach() + 0 * x;
  }

 private:
  dsv3::Linear up_, down_;
};

struct OddRankOptions {
  int64_t rank = 1, step = 2;
  std::string how = "throw";

  static void describe(dsv3::OptionSchema<OddRankOptions>& s) {
    s.add("rank", &OddRankOptions::rank, "rank that differs").execution();
    s.add("step", &OddRankOptions::step, "step after which it does").execution();
    s.add("how", &OddRankOptions::how, "throw an error, change a weight, or have another shape")
        .choices({"throw", "change", "shape"})
        .execution();
  }
};

/// A layer that behaves differently on one rank.
class OddRank final : public dsv3::FeedForward {
 public:
  using Options = OddRankOptions;
  OddRank(const OddRankOptions& options, const dsv3::LayerContext& context)
      : FeedForward(context), o_(options) {
    const char* rank = std::getenv("RANK");
    is_odd_ = rank && std::atoll(rank) == o_.rank;
    const int64_t width = context.dims.hidden;
    const int64_t inner = is_odd_ && o_.how == "shape" ? width + 8 : width;
    up_ = parameter("up.weight", {inner, width}, {});
    down_ = parameter("down.weight", {width, inner}, {});
  }
  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence&) override {
    return at::linear(at::linear(x, up_).relu(), down_);
  }
  void on_step_end(const dsv3::StepEnd& end) override {
    if (!is_odd_ || end.step != o_.step) return;
    if (o_.how == "throw") throw dsv3::Error("a fault of one rank", dsv3::ExitCode::data);
    if (o_.how == "change") up_.data().view({-1})[3].add_(1e-3);
  }

 private:
  const OddRankOptions o_;
  bool is_odd_ = false;
  at::Tensor up_, down_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.attention<Fused>("fused", "Attention with one parameter for queries, keys and values");
  registrar.feed_forward<Detached>("detached", "Feed-forward layer whose output is detached");
  registrar.feed_forward<OddRank>("odd_rank", "Layer that differs on one rank");
}
