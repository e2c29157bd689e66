// Multi-head attention, including grouped-query and multi-query attention.
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct MhaOptions {
  int64_t heads = 10;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  bool qk_norm = false;
  double rotary_share = 1;

  static void describe(dsv3::OptionSchema<MhaOptions>& s) {
    s.add("heads", &MhaOptions::heads, "number of query heads")
        .min(1)
        .max(1 << 16)
        .shared("attention heads");
    s.add("kv_heads", &MhaOptions::kv_heads,
          "number of key-value heads; 1 = multi-query, fewer than heads = grouped-query")
        .min(0)
        .max(1 << 16)
        .word("heads", 0);
    s.add("head_dim", &MhaOptions::head_dim, "features per head; auto = hidden / heads")
        .min(0)
        .max(1 << 16)
        .word("auto", 0);
    s.add("qk_norm", &MhaOptions::qk_norm, "apply RMSNorm to each query and key head");
    s.add("rotary_share", &MhaOptions::rotary_share,
          "fraction of each head's features, starting with the first, that the position plugin "
          "rotates")
        .min(0)
        .max(1);
  }
};

class Mha final : public dsv3::Attention {
 public:
  using Options = MhaOptions;
  Mha(const MhaOptions& options, const dsv3::LayerContext& context);

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override;
  int64_t cache_values_per_token() const override;

 private:
  std::pair<at::Tensor, at::Tensor> rotated(const at::Tensor& q, const at::Tensor& k,
                                            const at::Tensor& positions) const;

  MhaOptions o_;  // with all sizes resolved
  int64_t rotary_dim_;
  dsv3::Linear q_, k_, v_, out_;
  dsv3::RmsNorm q_norm_, k_norm_;
  std::shared_ptr<dsv3::Position> position_;  // null: no rotation
  double scale_;
};

MhaOptions resolved(MhaOptions o, int64_t hidden) {
  const std::string heads = std::to_string(o.heads);
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  if (o.heads % o.kv_heads != 0)
    throw dsv3::Error("kv_heads (" + std::to_string(o.kv_heads) + ") does not divide heads (" +
                          heads +
                          "): each key-value head serves the same number of query heads; choose "
                          "kv_heads that divide heads",
                      dsv3::ExitCode::usage);
  if (o.head_dim == 0) {
    if (hidden % o.heads != 0)
      throw dsv3::Error("heads (" + heads + ") does not divide model.hidden (" +
                            std::to_string(hidden) +
                            "); choose heads that divide it, or set head_dim",
                        dsv3::ExitCode::usage);
    o.head_dim = hidden / o.heads;
  }
  return o;
}

Mha::Mha(const MhaOptions& options, const dsv3::LayerContext& context)
    : Attention(context), o_(resolved(options, context.dims.hidden)) {
  const int64_t hidden = context.dims.hidden;
  rotary_dim_ = 2 * static_cast<int64_t>(std::llround(o_.rotary_share * o_.head_dim / 2));
  rotary_dim_ = std::min(rotary_dim_, o_.head_dim);
  if (rotary_dim_ > 0)
    position_ =
        dsv3::position_of(context, options.head_dim > 0 ? "head_dim" : "heads", rotary_dim_);
  q_ = dsv3::Linear(*this, "q", hidden, o_.heads * o_.head_dim);
  k_ = dsv3::Linear(*this, "k", hidden, o_.kv_heads * o_.head_dim);
  v_ = dsv3::Linear(*this, "v", hidden, o_.kv_heads * o_.head_dim);
  if (o_.qk_norm) {
    q_norm_ = dsv3::RmsNorm(*this, "q_norm", o_.head_dim, context.dims.norm_eps);
    k_norm_ = dsv3::RmsNorm(*this, "k_norm", o_.head_dim, context.dims.norm_eps);
  }
  out_ = dsv3::Linear(*this, "o", o_.heads * o_.head_dim, hidden);
  scale_ =
      (position_ ? position_->softmax_scale() : 1.0) / std::sqrt(static_cast<double>(o_.head_dim));
}

std::pair<at::Tensor, at::Tensor> Mha::rotated(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& positions) const {
  if (!position_) return {q, k};
  if (rotary_dim_ == o_.head_dim) return position_->rotate(q, k, positions);
  const std::vector<int64_t> sizes{rotary_dim_, o_.head_dim - rotary_dim_};
  const std::vector<at::Tensor> qs = q.split_with_sizes(sizes, -1),
                                ks = k.split_with_sizes(sizes, -1);
  const auto [rotated_q, rotated_k] = position_->rotate(qs[0], ks[0], positions);
  return {at::cat({rotated_q, qs[1]}, -1), at::cat({rotated_k, ks[1]}, -1)};
}

at::Tensor Mha::forward(const at::Tensor& x, const dsv3::Sequence& seq) {
  const int64_t batch = x.size(0), length = x.size(1), width = o_.kv_heads * o_.head_dim;
  at::Tensor q = q_(x).view({batch, length, o_.heads, o_.head_dim});
  at::Tensor k = k_(x).view({batch, length, o_.kv_heads, o_.head_dim});
  at::Tensor v = v_(x).view({batch, length, o_.kv_heads, o_.head_dim});
  if (o_.qk_norm) {
    q = q_norm_(q);
    k = k_norm_(k);
  }
  std::tie(q, k) = rotated(q, k, seq.positions);
  const auto mix = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return dsv3::attend(q, k, v, seq, {.scale = scale_});
  };
  at::Tensor mixed;
  if (seq.cache) {
    seq.cache->append(at::cat({k.flatten(2), v.flatten(2)}, -1));
    mixed = seq.cache->each_row(q, [&](const at::Tensor& row_q, const at::Tensor& all) {
      const auto part = [&](int64_t begin) {
        return all.narrow(2, begin, width).unflatten(2, {o_.kv_heads, o_.head_dim});
      };
      return mix(row_q, part(0), part(width));
    });
  } else {
    mixed = mix(q, k, v);
  }
  return out_(mixed.reshape({batch, length, o_.heads * o_.head_dim}));
}

int64_t Mha::cache_values_per_token() const {
  return 2 * o_.kv_heads * o_.head_dim;
}

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.attention<Mha>("mha", "Multi-head, grouped-query and multi-query attention");
}
