// Interface for attention plugins, and the micro-batch that the core passes to every layer.
#pragma once

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// One layer's cache during generation. It has one row for each sequence of the batch, and each row
/// is as long as its sequence. Rows share no storage and contain no padding.
class KvCache {
 public:
  /// `values`: number of values per token, see Attention::cache_values_per_token(). The capacity
  /// grows as needed.
  KvCache(int64_t rows, int64_t values, at::ScalarType dtype, at::Device device);

  // Called by layers.
  /// Appends `values` [1, N, C] of the new tokens in this forward pass, row by row.
  void append(const at::Tensor& values);
  /// Calls `attend` for each row that has new tokens, with the row's slice [1, T, ..] of q [1, N,
  /// ..] and all cached values of the row [1, S, C], S >= T, in q's dtype. Returns the concatenated
  /// results [1, N, ..].
  using RowFunction = std::function<at::Tensor(const at::Tensor& q, const at::Tensor& all)>;
  at::Tensor each_row(const at::Tensor& q, const RowFunction& attend) const;
  /// True if all rows were empty before the last append().
  bool fresh() const { return fresh_; }

  // Called by the code that runs the layers.
  /// Sets the number of new tokens in each row before each forward pass. Rows with 0 do not change.
  void expect(const std::vector<int64_t>& counts);
  /// Number of tokens in each row.
  const std::vector<int64_t>& lengths() const { return lengths_; }
  /// Truncates a row to `length` tokens, e.g. after drafts were rejected. A `length` of 0 frees the
  /// row's memory. Throws dsv3::Error if the row has fewer tokens.
  void truncate(int64_t row, int64_t length);
  /// Size of the cached values in bytes: tokens * C * element size.
  int64_t bytes() const;
  /// Allocated bytes: bytes(), spare capacity for fewer than 64 tokens per row, and memory that
  /// truncate() did not free.
  int64_t reserved_bytes() const;

 private:
  std::vector<at::Tensor> rows_;  // [capacity, C] each
  std::vector<int64_t> lengths_, counts_;
  bool fresh_ = true;
};

class Packing;

/// What layers receive with a micro-batch. Cheap to copy.
struct Sequence {
  at::Tensor positions;     ///< int64 [B, T]; restart at 0 in each document
  at::Tensor document_ids;  ///< int64 [B, T]; undefined = one document per row
  /// Documents in the same row; null = plain causal attention.
  std::shared_ptr<const Packing> packing;
  /// Set during generation. Then B is 1, T is the number of new tokens in all rows, row by row, and
  /// `positions` continue after each row's cached tokens.
  KvCache* cache = nullptr;
  bool training = false;   ///< false in validation and generation
  bool recompute = false;  ///< second forward pass of a checkpointed block, which must not count
                           ///< tokens
  double aux_scale = 0;    ///< 1 / number of sequences in the whole step (all micro-batches, all
                           ///< ranks)

  /// bool [B, 1, T, T], true = may attend; undefined = plain causal mask. dsv3::attend does without
  /// this mask where a kernel can.
  at::Tensor mask() const;
};

class Attention : public Component {
 public:
  using Component::Component;
  ~Attention() override;
  /// x and the result are [B, T, D].
  virtual at::Tensor forward(const at::Tensor& x, const Sequence& seq) = 0;
  /// Forward FLOPs per token for scores and values (non-causal): 2 * seq * H * (qk + v).
  virtual double attention_flops(int64_t seq) const = 0;
  /// C, the number of values per token in this layer's KvCache.
  virtual int64_t cache_values_per_token() const = 0;
  /// Number of values per token saved between forward and backward, for memory estimates.
  virtual int64_t saved_values_per_token(int64_t seq) const = 0;
};

}  // namespace dsv3
