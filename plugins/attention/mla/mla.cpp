// Multi-head latent attention: keys and values are computed from one small latent per token, and
// the cache holds only the latents (DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437).
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct MlaOptions {
  int64_t heads = 10;
  int64_t q_lora_rank = 192;
  int64_t kv_lora_rank = 128;
  int64_t qk_nope_dim = 32;
  int64_t qk_rope_dim = 32;
  int64_t v_dim = 64;
  double latent_norm_eps = 1e-6;
  std::string muon_split = "whole";
  std::string decode = "absorbed";

  static void describe(dsv3::OptionSchema<MlaOptions>& s) {
    s.add("heads", &MlaOptions::heads, "number of attention heads")
        .min(1)
        .max(1 << 16)
        .shared("attention heads");
    s.add("q_lora_rank", &MlaOptions::q_lora_rank,
          "width of the query latent; 0 = project queries directly, without a latent")
        .min(0)
        .max(1 << 20)
        .word("none", 0);
    s.add("kv_lora_rank", &MlaOptions::kv_lora_rank, "width of the key-value latent")
        .min(1)
        .max(1 << 20);
    s.add("qk_nope_dim", &MlaOptions::qk_nope_dim,
          "number of query and key features per head that are not rotated")
        .min(1)
        .max(1 << 16);
    s.add("qk_rope_dim", &MlaOptions::qk_rope_dim,
          "number of rotated features in each query head and in the key shared by all heads")
        .min(1)
        .max(1 << 16);
    s.add("v_dim", &MlaOptions::v_dim, "number of value features per head").min(1).max(1 << 16);
    // A convention, because the Transformers library always uses 1e-6, whereas other
    // implementations use the model's eps.
    s.add("latent_norm_eps", &MlaOptions::latent_norm_eps,
          "eps in the RMSNorm layers of the latents")
        .min(0)
        .convention();
    s.add("muon_split", &MlaOptions::muon_split,
          "how matrix optimizers treat q_b (or q) and kv_b: whole = one matrix, per_head = one "
          "matrix per head")
        .choices({"whole", "per_head"})
        .convention();
    s.add("decode", &MlaOptions::decode,
          "attention during generation: absorbed attends to the cached latents, naive recomputes "
          "keys and values from them")
        .choices({"absorbed", "naive"});
  }
};

class Mla final : public dsv3::Attention {
 public:
  using Options = MlaOptions;
  Mla(const MlaOptions& options, const dsv3::LayerContext& context);

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override;
  int64_t cache_values_per_token() const override;

 private:
  int64_t qk_dim() const { return o_.qk_nope_dim + o_.qk_rope_dim; }
  at::Tensor queries(const at::Tensor& x) const;
  at::Tensor expanded(const at::Tensor& q, const at::Tensor& latent, const at::Tensor& k_rope,
                      const dsv3::Sequence& seq) const;
  at::Tensor cached(const at::Tensor& q, const dsv3::Sequence& seq) const;
  at::Tensor absorbed(const at::Tensor& q, const dsv3::Sequence& seq) const;

  MlaOptions o_;
  dsv3::Linear q_, q_a_, q_b_, kv_a_, kv_b_, out_;
  dsv3::RmsNorm q_a_norm_, kv_a_norm_;
  std::shared_ptr<dsv3::Position> position_;
  double scale_;
};

Mla::Mla(const MlaOptions& options, const dsv3::LayerContext& context)
    : Attention(context),
      o_(options),
      position_(dsv3::position_of(context, "qk_rope_dim", options.qk_rope_dim)) {
  const int64_t hidden = context.dims.hidden;
  dsv3::ParamSpec by_head;
  if (o_.muon_split == "per_head") by_head.matrices = o_.heads;
  if (o_.q_lora_rank > 0) {
    q_a_ = dsv3::Linear(*this, "q_a", hidden, o_.q_lora_rank);
    q_a_norm_ = dsv3::RmsNorm(*this, "q_a_norm", o_.q_lora_rank, o_.latent_norm_eps);
    q_b_ = dsv3::Linear(*this, "q_b", o_.q_lora_rank, o_.heads * qk_dim(), by_head);
  } else {
    q_ = dsv3::Linear(*this, "q", hidden, o_.heads * qk_dim(), by_head);
  }
  kv_a_ = dsv3::Linear(*this, "kv_a", hidden, o_.kv_lora_rank + o_.qk_rope_dim);
  kv_a_norm_ = dsv3::RmsNorm(*this, "kv_a_norm", o_.kv_lora_rank, o_.latent_norm_eps);
  kv_b_ =
      dsv3::Linear(*this, "kv_b", o_.kv_lora_rank, o_.heads * (o_.qk_nope_dim + o_.v_dim), by_head);
  out_ = dsv3::Linear(*this, "o", o_.heads * o_.v_dim, hidden);
  scale_ = position_->softmax_scale() / std::sqrt(static_cast<double>(qk_dim()));
}

// [B, T, D] -> [B, T, H, nope + rope]
at::Tensor Mla::queries(const at::Tensor& x) const {
  const at::Tensor q = o_.q_lora_rank > 0 ? q_b_(q_a_norm_(q_a_(x))) : q_(x);
  return q.view({x.size(0), x.size(1), o_.heads, qk_dim()});
}

// Computes keys and values of all heads and attends to them. q [B, T, H, nope + rope], latent [B,
// S, kv_lora], k_rope [B, S, 1, rope] -> [B, T, H, v].
at::Tensor Mla::expanded(const at::Tensor& q, const at::Tensor& latent, const at::Tensor& k_rope,
                         const dsv3::Sequence& seq) const {
  const int64_t batch = latent.size(0), length = latent.size(1);
  // One split instead of two slices, because the backward pass of a split is a single
  // concatenation.
  const std::vector<at::Tensor> kv = kv_b_(latent)
                                         .view({batch, length, o_.heads, o_.qk_nope_dim + o_.v_dim})
                                         .split_with_sizes({o_.qk_nope_dim, o_.v_dim}, -1);
  const at::Tensor k =
      at::cat({kv[0], k_rope.expand({batch, length, o_.heads, o_.qk_rope_dim})}, -1);
  return dsv3::attend(q, k, kv[1], seq, {.scale = scale_});
}

// Computes attention over the cache, which already contains the new tokens.
at::Tensor Mla::cached(const at::Tensor& q, const dsv3::Sequence& seq) const {
  // For a prefill into an empty cache, computing keys and values is cheaper.
  if (o_.decode == "absorbed" && !seq.cache->fresh()) return absorbed(q, seq);
  return seq.cache->each_row(q, [&](const at::Tensor& row_q, const at::Tensor& all) {
    return expanded(row_q, all.narrow(-1, 0, o_.kv_lora_rank),
                    all.narrow(-1, o_.kv_lora_rank, o_.qk_rope_dim).unsqueeze(2), seq);
  });
}

// Computes the same as expanded(), but without computing keys or values: kv_b's key half W_k is
// applied to the queries and its value half W_v to the result, and all heads attend to the cached
// [latent | rotated k_rope] as one shared key. The result is the same because
// q_nope . (W_k c) = (W_k^T q_nope) . c and sum_s p_s (W_v c_s) = W_v (sum_s p_s c_s).
at::Tensor Mla::absorbed(const at::Tensor& q, const dsv3::Sequence& seq) const {
  const int64_t batch = q.size(0), length = q.size(1);
  const std::vector<at::Tensor> weight =
      kv_b_.weight()
          .view({o_.heads, o_.qk_nope_dim + o_.v_dim, o_.kv_lora_rank})
          .split_with_sizes({o_.qk_nope_dim, o_.v_dim}, 1);
  const std::vector<at::Tensor> parts = q.split_with_sizes({o_.qk_nope_dim, o_.qk_rope_dim}, -1);
  const at::Tensor by_head = parts[0].reshape({batch * length, o_.heads, -1}).transpose(0, 1);
  const at::Tensor q_latent = at::bmm(by_head, weight[0])  // [H, B * T, kv_lora]
                                  .transpose(0, 1)
                                  .reshape({batch, length, o_.heads, o_.kv_lora_rank});
  const auto attend = [&](const at::Tensor& row_q, const at::Tensor& all) {
    const at::Tensor shared = all.unsqueeze(2);  // [1, S, 1, kv_lora + rope]
    return dsv3::attend(row_q, shared, shared, seq, {.scale = scale_});
  };
  // Dropping the rope columns of the result is cheaper than copying the cache without them.
  const at::Tensor mixed =
      seq.cache->each_row(at::cat({q_latent, parts[1]}, -1), attend).narrow(-1, 0, o_.kv_lora_rank);
  const at::Tensor values = at::bmm(mixed.reshape({batch * length, o_.heads, -1}).transpose(0, 1),
                                    weight[1].transpose(1, 2));  // [H, B * T, v]
  return values.transpose(0, 1).reshape({batch, length, o_.heads, o_.v_dim});
}

at::Tensor Mla::forward(const at::Tensor& x, const dsv3::Sequence& seq) {
  const int64_t batch = x.size(0), length = x.size(1);
  const std::vector<at::Tensor> q =
      queries(x).split_with_sizes({o_.qk_nope_dim, o_.qk_rope_dim}, -1);
  const std::vector<at::Tensor> kv =
      kv_a_(x).split_with_sizes({o_.kv_lora_rank, o_.qk_rope_dim}, -1);
  const at::Tensor latent = kv_a_norm_(kv[0]);
  const auto [q_rope, k_rope] = position_->rotate(q[1], kv[1].unsqueeze(2), seq.positions);
  const at::Tensor rotated = at::cat({q[0], q_rope}, -1);
  if (seq.cache) seq.cache->append(at::cat({latent, k_rope.squeeze(2)}, -1));
  const at::Tensor mixed =
      seq.cache ? cached(rotated, seq) : expanded(rotated, latent, k_rope, seq);
  return out_(mixed.reshape({batch, length, o_.heads * o_.v_dim}));
}

int64_t Mla::cache_values_per_token() const {
  return o_.kv_lora_rank + o_.qk_rope_dim;
}

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.attention<Mla>("mla", "Multi-head latent attention (DeepSeek-V3)");
}
