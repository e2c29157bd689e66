// Small reference layers in plain LibTorch, for models in which another component is tested.
#pragma once

#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/position.h>

namespace dsv3::conformance {

/// Base class for attention with q, k, v and o projections as wide as the model.
class ProjectedAttention : public Attention {
 public:
  explicit ProjectedAttention(const LayerContext& context)
      : Attention(context), width_(context.dims.hidden) {
    for (size_t i = 0; i < 4; ++i)
      projections_[i] = Linear(*this, std::string(1, "qkvo"[i]), width_, width_);
  }
  int64_t cache_values_per_token() const override { return 2 * width_; }

 protected:
  int64_t width_;
  Linear projections_[4];
};

/// Single-head attention whose scores decrease with the distance between positions, so that wrong
/// positions change the output.
class ReferenceAttention final : public ProjectedAttention {
 public:
  using ProjectedAttention::ProjectedAttention;
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    const at::Tensor q = projections_[0](x);
    const at::Tensor keys_values = at::cat({projections_[1](x), projections_[2](x)}, -1);
    if (!seq.cache)
      return projections_[3](mix(q, keys_values, seq.positions, seq.positions, seq.mask()));
    seq.cache->append(keys_values);
    const at::Tensor placed = at::cat({q, seq.positions.unsqueeze(2).to(q.scalar_type())}, -1);
    return projections_[3](
        seq.cache->each_row(placed, [&](const at::Tensor& row, const at::Tensor& all) {
          return mix(row.narrow(2, 0, width_), all, row.select(2, width_).to(at::kLong),
                     at::arange(all.size(1), seq.positions.options()).unsqueeze(0), {});
        }));
  }

 private:
  /// q [B, T, D], keys_values [B, S, 2 D], positions [B, T], key_positions [B, S].
  at::Tensor mix(const at::Tensor& q, const at::Tensor& keys_values, const at::Tensor& positions,
                 const at::Tensor& key_positions, const at::Tensor& mask) const {
    const at::Tensor distance = positions.unsqueeze(2) - key_positions.unsqueeze(1);
    const at::Tensor allowed = mask.defined() ? mask.squeeze(1) : distance.ge(0);
    const at::Tensor k = keys_values.narrow(2, 0, width_),
                     v = keys_values.narrow(2, width_, width_);
    const at::Tensor scores =
        at::matmul(q, k.transpose(1, 2)) * 4 - distance.to(q.scalar_type()) * 0.3;
    return at::matmul(scores.masked_fill(~allowed, -1e9).softmax(-1), v);
  }
};

/// Two-head attention that applies the position encoding to q and k, as attention plugins do.
class RotaryAttention final : public ProjectedAttention {
 public:
  explicit RotaryAttention(const LayerContext& context)
      : ProjectedAttention(context), position_(context.make_position(width_ / 2)) {}
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    const int64_t batch = x.size(0), length = x.size(1), head = width_ / 2;
    const auto heads = [&](size_t i) { return projections_[i](x).view({batch, length, 2, head}); };
    const auto [q, k] = position_->rotate(heads(0), heads(1), seq.positions);
    const double scale = position_->softmax_scale() / std::sqrt(double(head));
    return projections_[3](
        attend(q, k, heads(2), seq, {.scale = scale}).reshape({batch, length, width_}));
  }

 private:
  std::shared_ptr<Position> position_;
};

/// A relu^2 feed-forward layer with an auxiliary loss per sequence and one count per neuron,
/// similar to a mixture of experts.
class ReferenceFeedForward final : public FeedForward {
 public:
  explicit ReferenceFeedForward(const LayerContext& context)
      : FeedForward(context), width_(context.dims.hidden) {
    up_ = Linear(*this, "up", width_, 2 * width_, {.active = 0.5});
    down_ = Linear(*this, "down", 2 * width_, width_);
    counts_ = at::zeros({2 * width_}, at::TensorOptions(at::kLong).device(context.device));
  }
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    const at::Tensor hidden = up_(x).relu();
    if (seq.training && !seq.recompute)
      counts_.add_(hidden.detach().gt(0).sum(at::IntArrayRef{0, 1}));
    at::Tensor y = down_(hidden.square());
    if (!seq.training) return y;
    const at::Tensor aux =
        hidden.square().mean({1, 2}).sum() * 50;  // sum of the per-sequence means
    return add_loss(y, aux, seq.aux_scale);
  }
  at::Tensor step_counts() override { return counts_; }

 private:
  int64_t width_;
  Linear up_, down_;
  at::Tensor counts_;
};

}  // namespace dsv3::conformance
