// Causal attention through LibTorch's scaled_dot_product_attention, arranged to use flash kernels.
#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

// Causal mask, bool [1, 1, T, S], for queries at the last T of S positions.
at::Tensor end_mask(int64_t queries, int64_t keys, const at::Tensor& like) {
  return at::ones({1, 1, queries, keys}, like.options().dtype(at::kBool)).tril_(keys - queries);
}

// Attention without a fused kernel. q [B, H, T, Dk], k [B, H, S, Dk], v [B, H, S, Dv].
at::Tensor plain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& mask, double scale) {
  const int64_t groups = q.size(1) / k.size(1);
  const at::Tensor keys = k.repeat_interleave(groups, 1), values = v.repeat_interleave(groups, 1);
  const at::Tensor allowed = mask.defined() ? mask : end_mask(q.size(2), k.size(2), q);
  const at::ScalarType math = math_type(q.scalar_type());
  const at::Tensor scores = at::matmul(q, keys.transpose(2, 3)).to(math) * scale;
  const at::Tensor weights =
      scores.masked_fill(allowed.logical_not(), -std::numeric_limits<double>::infinity())
          .softmax(-1);
  return at::matmul(weights.to(v.scalar_type()), values);
}

// Flash attention on a CPU requires q, k and v to have the same head dimension. Zeros appended to q
// and k do not change the scores, and zeros appended to v add columns that are cut off. Padding
// takes less time than computing all scores, and its memory use is linear in T.
at::Tensor fused(at::Tensor q, at::Tensor k, at::Tensor v, const at::Tensor& mask, bool causal,
                 double scale) {
  const int64_t key_dim = q.size(3), value_dim = v.size(3);
  if (q.is_cpu() && key_dim < value_dim) {
    q = at::constant_pad_nd(q, {0, value_dim - key_dim});
    k = at::constant_pad_nd(k, {0, value_dim - key_dim});
  } else if (q.is_cpu() && value_dim < key_dim) {
    v = at::constant_pad_nd(v, {0, key_dim - value_dim});
  }
  std::optional<at::Tensor> allowed;
  if (mask.defined()) allowed = mask;
  const at::Tensor out = at::scaled_dot_product_attention(q, k, v, allowed, /*dropout_p=*/0.0,
                                                          /*is_causal=*/causal, scale,
                                                          /*enable_gqa=*/q.size(1) != k.size(1));
  return out.narrow(3, 0, value_dim);
}

// Attention within documents that are packed into the same rows. The kernel reads the document
// boundaries instead of a mask.
// q [B, T, H, Dk], k [B, T, Hk, Dk], v [B, T, Hk, Dv] -> [B, T, H, Dv].
at::Tensor within_documents(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const Packing& packing, double scale) {
  const int64_t width = std::max(q.size(3), v.size(3));
  // Pads to [B * T, H, width], because the kernel requires equal head dimensions in q, k and v.
  const auto rows = [&](const at::Tensor& x) {
    const at::Tensor flat = x.reshape({-1, x.size(2), x.size(3)});
    return x.size(3) == width ? flat : at::constant_pad_nd(flat, {0, width - x.size(3)});
  };
  const at::Tensor out = std::get<0>(at::_flash_attention_forward(
      rows(q), rows(k), rows(v), packing.boundaries(), packing.boundaries(), packing.longest(),
      packing.longest(), /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false,
      scale));
  return out.narrow(2, 0, v.size(3)).view({q.size(0), q.size(1), q.size(2), v.size(3)});
}

// Whether within_documents() supports these tensors.
bool has_kernel_for_documents(const at::Tensor& q, const at::Tensor& v, const Sequence& seq) {
  constexpr int64_t kWidest = 256;
  const int64_t width = std::max(q.size(3), v.size(3));
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  return q.is_cuda() && half && width <= kWidest && width % 8 == 0 && seq.packing &&
         seq.packing->boundaries().defined();
}

// Attention during decoding: the query heads that share a key head become rows of one matrix
// product. q [B, T, H, Dk] -> [B, Hk, T * G, Dk], mask [1, 1, T, S] -> [1, 1, T * G, S].
at::Tensor decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const int64_t batch = q.size(0), length = q.size(1), heads = q.size(2), key_heads = k.size(2);
  const int64_t groups = heads / key_heads;
  const at::Tensor rows = q.reshape({batch, length, key_heads, groups, q.size(3)})
                              .permute({0, 2, 1, 3, 4})
                              .reshape({batch, key_heads, length * groups, q.size(3)});
  at::Tensor mask;  // undefined: a single query attends to all keys
  if (length > 1) mask = end_mask(length, k.size(1), q).repeat_interleave(groups, 2);
  const at::Tensor out = fused(rows, k.transpose(1, 2), v.transpose(1, 2), mask, false, scale);
  return out.reshape({batch, key_heads, length, groups, v.size(3)})
      .permute({0, 2, 1, 3, 4})
      .reshape({batch, length, heads, v.size(3)});
}

}  // namespace

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const Sequence& seq, const AttendOptions& options) {
  const double scale = options.scale.value_or(1 / std::sqrt(double(q.size(-1))));
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(3) == k.size(3) &&
                  k.size(1) == v.size(1) && k.size(2) == v.size(2) && q.size(2) % k.size(2) == 0,
              "attend: q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(),
              " are incompatible");
  const int64_t queries = q.size(1), keys = k.size(1);
  const bool cached = queries != keys;
  TORCH_CHECK(!cached || (seq.cache && queries < keys), "attend: ", queries, " queries and ", keys,
              " keys, which may differ only with a KvCache");
  if (reference_ops())
    return plain(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), seq.mask(), scale)
        .transpose(1, 2);
  if (cached) return decode(q, k, v, scale);
  if (has_kernel_for_documents(q, v, seq)) return within_documents(q, k, v, *seq.packing, scale);
  return fused(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), seq.mask(), !seq.packing,
               scale)
      .transpose(1, 2);
}

}  // namespace dsv3
