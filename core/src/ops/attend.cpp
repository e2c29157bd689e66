// Causal attention: chooses a kernel. Without options, it is LibTorch's
// scaled_dot_product_attention, arranged to use flash kernels.
#include "ops/attend.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>

#include <dsv3/sdk/packing.h>

#include "ops/meta.h"

namespace dsv3 {
namespace {

// Flash attention on a CPU requires q, k and v to have the same head dimension. Zeros appended to q
// and k do not change the scores, and zeros appended to v add columns that are cut off. Padding
// takes less time than computing all scores, and its memory use is linear in T.
at::Tensor fused(at::Tensor q, at::Tensor k, at::Tensor v, const at::Tensor& mask, bool causal,
                 double scale) {
  const int64_t key_dim = q.size(3), value_dim = v.size(3);
  if (on_cpu(q) && key_dim < value_dim) {
    q = at::constant_pad_nd(q, {0, value_dim - key_dim});
    k = at::constant_pad_nd(k, {0, value_dim - key_dim});
  } else if (on_cpu(q) && value_dim < key_dim) {
    v = at::constant_pad_nd(v, {0, key_dim - value_dim});
  }
  std::optional<at::Tensor> allowed;
  if (mask.defined()) allowed = mask;
  const at::Tensor out = at::scaled_dot_product_attention(q, k, v, allowed, /*dropout_p=*/0.0,
                                                          /*is_causal=*/causal, scale,
                                                          /*enable_gqa=*/q.size(1) != k.size(1));
  return out.narrow(3, 0, value_dim);
}

// Attention during decoding: the query heads that share a key head become rows of one matrix
// product. q [B, T, H, Dk] -> [B, Hk, T * G, Dk], mask [B or 1, 1, T, S] -> [.., 1, T * G, S].
at::Tensor decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const Sequence& seq, double scale) {
  const int64_t batch = q.size(0), length = q.size(1), heads = q.size(2), key_heads = k.size(2);
  const int64_t groups = heads / key_heads, keys = k.size(1);
  const at::Tensor rows = q.reshape({batch, length, key_heads, groups, q.size(3)})
                              .permute({0, 2, 1, 3, 4})
                              .reshape({batch, key_heads, length * groups, q.size(3)});
  at::Tensor mask = seq.mask();  // stays undefined if a single query attends to all keys
  if (mask.defined())
    mask = mask.expand({batch, 1, length, keys});
  else if (length > 1)
    mask = at::ones({1, 1, length, keys}, q.options().dtype(at::kBool)).tril_(keys - length);
  if (mask.defined()) mask = mask.repeat_interleave(groups, 2);
  const at::Tensor out = fused(rows, k.transpose(1, 2), v.transpose(1, 2), mask, false, scale);
  return out.reshape({batch, key_heads, length, groups, v.size(3)})
      .permute({0, 2, 1, 3, 4})
      .reshape({batch, length, heads, v.size(3)});
}

// Whether `seq` contains a mask instead of documents.
bool has_own_mask(const Sequence& seq) {
  return seq.packing && !seq.packing->boundaries().defined();
}

void check_mask(const at::Tensor& q, const at::Tensor& k, const Sequence& seq) {
  const std::vector<int64_t> scores{q.size(0), 1, q.size(1), k.size(1)};
  if (has_own_mask(seq)) {
    const at::Tensor mask = seq.mask();
    TORCH_CHECK(
        mask.scalar_type() == at::kBool && at::is_expandable_to(mask.sizes(), scores),
        "attend: the mask has dtype ", mask.scalar_type(), " and shape ", mask.sizes(),
        "; it must be bool and broadcast to [batch, 1, queries, keys] = ", at::IntArrayRef(scores));
  } else {
    TORCH_CHECK(!seq.packing || q.size(1) == k.size(1), "attend: packed documents with ", q.size(1),
                " queries and ", k.size(1), " keys; decode each document in its own row");
  }
}

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Sequence& seq,
           const AttendOptions& options) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(3) == k.size(3) &&
                  k.size(1) == v.size(1) && k.size(2) == v.size(2) && q.size(2) % k.size(2) == 0,
              "attend: q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(),
              " are incompatible");
  const int64_t queries = q.size(1), keys = k.size(1);
  TORCH_CHECK(queries == keys || (seq.cache && queries < keys), "attend: ", queries,
              " queries and ", keys, " keys, which may differ only with a KvCache");
  check_mask(q, k, seq);
  TORCH_CHECK(!options.window || *options.window >= 1, "attend: the window is ", *options.window,
              " tokens; it must be at least 1");
  TORCH_CHECK(options.softcap >= 0, "attend: softcap is ", options.softcap,
              "; it must be at least 0");
  TORCH_CHECK(
      !options.sinks.defined() || (options.sinks.dim() == 1 && options.sinks.size(0) == q.size(2)),
      "attend: sinks ", options.sinks.sizes(), " do not match q ", q.sizes(),
      "; there must be one per head");
}

}  // namespace

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const Sequence& seq, const AttendOptions& given) {
  check(q, k, v, seq, given);
  AttendOptions options = given;
  const bool own_mask = has_own_mask(seq), cached = q.size(1) != k.size(1);
  if (options.window && *options.window >= k.size(1) && !own_mask) options.window.reset();
  const double scale = options.scale.value_or(1 / std::sqrt(double(q.size(3))));
  const auto visible = [&] { return visible_keys(q, k, seq, options.window); };
  if (seq.metrics.wanted()) record_max_logit(q, k, visible(), scale, seq.metrics);
  if (reference_ops()) return attend_plainly(q, k, v, seq, options, scale);

  const bool plain = !options.window && !options.sinks.defined() && options.softcap == 0;
  if (!own_mask && !cached && options.softcap == 0 && (seq.packing || !plain) &&
      has_kernel_for_documents(q, v))
    return attend_documents(q, k, v, seq.packing.get(), options, scale);
  if (!plain) return attend_by_blocks(q, k, v, visible(), options, scale);
  if (cached) return decode(q, k, v, seq, scale);
  return fused(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), seq.mask(), !seq.packing,
               scale)
      .transpose(1, 2);
}

}  // namespace dsv3
