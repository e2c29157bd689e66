// Interface of attention plugins, and the micro-batch that the core passes to every layer.
#pragma once

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// One layer's cache during generation: one row for each sequence of the batch, as long as that
/// sequence. Rows share no storage and hold no padding.
class KvCache {
 public:
  /// `values` per token, see Attention::cache_values_per_token(). The capacity grows as needed.
  KvCache(int64_t rows, int64_t values, at::ScalarType dtype, at::Device device);

  // Called by layers.
  /// Appends `values` [1, N, C] of this forward's new tokens, row after row (Sequence::cache).
  void append(const at::Tensor& values);
  /// Calls `attend` for each row that has new tokens, with the row's part [1, T, ..] of q [1, N,
  /// ..] and everything the row holds [1, S, C], S >= T, in q's dtype. Returns the concatenated
  /// results [1, N, ..].
  using RowFunction = std::function<at::Tensor(const at::Tensor& q, const at::Tensor& all)>;
  at::Tensor each_row(const at::Tensor& q, const RowFunction& attend) const;
  /// True if no row held tokens before the last append.
  bool fresh() const { return fresh_; }

  // Called by the code that runs the layers.
  /// Sets the number of new tokens of each row, before each forward. Rows with 0 do not change.
  void expect(const std::vector<int64_t>& counts);
  /// Number of tokens in each row.
  const std::vector<int64_t>& lengths() const { return lengths_; }
  /// Cuts a row to `length` tokens, when speculated tokens are rejected. A `length` of 0 frees its
  /// memory. Throws dsv3::Error if the row is shorter.
  void truncate(int64_t row, int64_t length);
  /// Bytes of the cached values: tokens * C * element size.
  int64_t bytes() const;
  /// Allocated bytes: bytes(), room for less than 64 more tokens per row, and what truncate() left.
  int64_t reserved_bytes() const;

 private:
  std::vector<at::Tensor> rows_;  // [capacity, C] each
  std::vector<int64_t> lengths_, counts_;
  bool fresh_ = true;
};

/// The micro-batch as layers see it. Cheap to copy.
struct Sequence {
  at::Tensor positions;     ///< int64 [B, T]; restart at 0 in each document
  at::Tensor document_ids;  ///< int64 [B, T]; undefined: one document per row
  at::Tensor mask;          ///< bool [B, 1, T, T], true = may attend; undefined: plain causal
  /// Set during generation. Then B is 1, T counts the new tokens of all rows, row after row, and
  /// `positions` continue after the tokens that each row holds.
  KvCache* cache = nullptr;
  bool training = false;   ///< false in validation and generation
  bool recompute = false;  ///< second forward of a checkpointed block, which must not count tokens
  double aux_scale = 0;    ///< 1 / sequences of the whole step (all micro-batches, all ranks)
};

class Attention : public Component {
 public:
  using Component::Component;
  ~Attention() override;
  /// x and the result are [B, T, D].
  virtual at::Tensor forward(const at::Tensor& x, const Sequence& seq) = 0;
  /// Forward FLOPs per token of scores and values at length `seq` (non-causal):
  /// 2 * seq * H * (qk + v).
  virtual double attention_flops(int64_t seq) const = 0;
  /// C, the number of values per token in this layer's KvCache.
  virtual int64_t cache_values_per_token() const = 0;
  /// Values per token saved between forward and backward, for memory estimates.
  virtual int64_t saved_values_per_token(int64_t seq) const = 0;
};

}  // namespace dsv3
