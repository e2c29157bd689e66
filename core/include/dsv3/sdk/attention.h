// Interface of attention plugins, and what the core hands to every layer for one micro-batch.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// One layer's cache while generating: a row for each text of the batch, each as long as its text.
/// Rows share no storage and hold no padding.
class KvCache {
 public:
  /// `values` a token, see Attention::cache_values_per_token(). Room grows as needed.
  KvCache(int64_t rows, int64_t values, at::ScalarType dtype, at::Device device);

  // For layers.
  /// Takes `values` [1, N, C] of the forward's new tokens, row behind row (Sequence::cache).
  void append(const at::Tensor& values);
  /// For each row that has new tokens: `attend` of its part [1, T, ..] of q [1, N, ..] and of all
  /// [1, S, C] that it holds, S >= T, in q's dtype. Returns the results joined again [1, N, ..].
  using RowFunction = std::function<at::Tensor(const at::Tensor& q, const at::Tensor& all)>;
  at::Tensor each_row(const at::Tensor& q, const RowFunction& attend) const;
  /// No row held tokens before the last append.
  bool fresh() const { return fresh_; }

  // For who drives the layers.
  /// Before each forward: the number of new tokens of each row; rows without any stay as they are.
  void expect(const std::vector<int64_t>& counts);
  /// Tokens that each row holds.
  const std::vector<int64_t>& lengths() const { return lengths_; }
  /// Cuts a row to `length`: speculation was refused. 0 gives its memory back. Throws dsv3::Error
  /// for more than it holds.
  void truncate(int64_t row, int64_t length);
  /// Of the tokens held: their number * C * element size.
  int64_t bytes() const;
  /// Allocated; beyond bytes() there is room for less than 64 tokens a row, and what truncate left.
  int64_t reserved_bytes() const;

 private:
  std::vector<at::Tensor> rows_;  // [capacity, C] each
  std::vector<int64_t> lengths_, counts_;
  bool fresh_ = true;
};

/// The micro-batch as layers see it. Made once a layer by the core; cheap to copy.
struct Sequence {
  at::Tensor positions;     ///< int64 [B, T]; restart at 0 in each document
  at::Tensor document_ids;  ///< int64 [B, T], or undefined: one document a row
  at::Tensor mask;          ///< bool [B, 1, T, T], true = may attend; undefined: plain causal
  /// Set while generating. Then B is 1, and T counts the new tokens of all rows, row behind row;
  /// `positions` go on from what each row holds.
  KvCache* cache = nullptr;
  bool training = false;   ///< false in validation and generation
  bool recompute = false;  ///< second forward of a checkpointed block: do not count again
  double aux_scale = 0;    ///< 1 / sequences of the whole step (all micro-batches, all ranks)
};

class Attention : public Component {
 public:
  using Component::Component;
  ~Attention() override;
  /// x and result are [B, T, D].
  virtual at::Tensor forward(const at::Tensor& x, const Sequence& seq) = 0;
  /// Forward FLOPs a token of scores and values at length `seq` (non-causal): 2 * seq * H * (qk +
  /// v).
  virtual double attention_flops(int64_t seq) const = 0;
  /// C: values a token that this layer keeps in its KvCache.
  virtual int64_t cache_values_per_token() const = 0;
  /// Values a token kept between forward and backward, for memory estimates.
  virtual int64_t saved_values_per_token(int64_t seq) const = 0;
};

}  // namespace dsv3
