// Parts of dsv3::attend.
#pragma once

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/ops.h>

namespace dsv3 {

/// Which keys each query may attend to: those from `first` to `last`, if `mask` allows them.
struct VisibleKeys {
  at::Tensor first;    ///< int64 [B or 1, T]
  at::Tensor last;     ///< int64 [1, T]
  at::Tensor mask;     ///< bool [B, 1, T, S]; undefined = all
  int64_t keys = 0;    ///< S
  int64_t window = 0;  ///< 0 = unlimited
  bool causal = true;

  /// Returns the first key that any of the queries [begin, begin + count) sees, and the number of
  /// keys up to the last one.
  std::pair<int64_t, int64_t> range(int64_t begin, int64_t count) const;
  /// Returns bool [B or 1, 1, count, key_count]: whether these queries see these keys.
  at::Tensor block(int64_t begin, int64_t count, int64_t first_key, int64_t key_count) const;
  /// Selects every `row_step`-th row, and every `step`-th query from `begin`.
  VisibleKeys sample(int64_t row_step, int64_t begin, int64_t step) const;
};

/// q [B, T, ...] and k [B, S, ...]. The host does not wait for a GPU.
VisibleKeys visible_keys(const at::Tensor& q, const at::Tensor& k, const Sequence& seq,
                         std::optional<int64_t> window);

/// Returns q [B, T, H, D] as [B * Hk, G, T, D], where G query heads share a key head.
at::Tensor grouped_queries(const at::Tensor& q, int64_t key_heads);
/// Returns k or v [B, S, Hk, D] as [B * Hk, S, D].
at::Tensor flat_keys(const at::Tensor& k);
/// Returns a b for batches of matrices, in fp32 (float64 if `type` is float64). On a GPU, the
/// operands are rounded to `type`, the dtype of the attention's inputs.
at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b, at::ScalarType type);

/// Attention in plain LibTorch, with all scores in memory. The shapes are those of attend().
at::Tensor attend_plainly(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Sequence& seq, const AttendOptions& options, double scale);

/// Attention with any options, for blocks of queries. Saves only its inputs and its result for the
/// backward pass, which computes the scores again.
at::Tensor attend_by_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const VisibleKeys& visible, const AttendOptions& options, double scale);

/// Whether attend_documents() supports these tensors.
bool has_kernel_for_documents(const at::Tensor& q, const at::Tensor& v);
/// Attention with windows and sinks through the flash kernel that reads the boundaries of documents
/// instead of a mask. Each row is one document if `packing` is null.
at::Tensor attend_documents(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const Packing* packing, const AttendOptions& options, double scale);

/// Records the largest score of up to 64 queries, evenly spaced over all rows.
void record_max_logit(const at::Tensor& q, const at::Tensor& k, const VisibleKeys& visible,
                      double scale, const Metrics& metrics);

}  // namespace dsv3
