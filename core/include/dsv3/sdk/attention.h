// Interface of attention plugins, and what the core hands to every layer for one micro-batch.
#pragma once

#include <map>

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// One layer's cache of a batch of sequences while generating.
class KvCache {
 public:
  /// `values` a token a layer, see Attention::cache_values_per_token(). Room grows as needed.
  KvCache(int64_t batch, int64_t values, at::ScalarType dtype, at::Device device);
  /// Appends `values` [B, T, C] behind each row's own end and returns all [B, S, C], S = the
  /// longest row. Rows shorter than S end in padding that `lengths` says to mask: row b's new
  /// tokens are at [lengths[b] - T, lengths[b]).
  at::Tensor append(const at::Tensor& values);
  /// int64 [B]: tokens each row holds, as of the last append or truncate.
  const at::Tensor& lengths() const { return lengths_; }
  /// The largest of them, known without asking the device.
  int64_t longest() const { return longest_; }
  /// Cuts rows to `lengths` [B]: after a right-padded prefill, or when speculation was refused.
  void truncate(const at::Tensor& lengths);
  int64_t bytes() const;

 private:
  at::Tensor storage_;   // [B, capacity, C]
  at::Tensor lengths_;   // [B]
  int64_t longest_ = 0;  // max of lengths_
  bool even_ = true;     // all rows are equally long
};

/// The micro-batch as layers see it. Made once a layer by the core; cheap to copy.
struct Sequence {
  at::Tensor positions;      ///< int64 [B, T]; restart at 0 in each document
  at::Tensor document_ids;   ///< int64 [B, T], or undefined: one document a row
  at::Tensor mask;           ///< bool [B, 1, T, T], true = may attend; undefined: plain causal
  KvCache* cache = nullptr;  ///< set while generating
  bool training = false;     ///< false in validation and generation
  bool recompute = false;    ///< second forward of a checkpointed block: do not count again
  double aux_scale = 0;      ///< 1 / sequences of the whole step (all micro-batches, all ranks)
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
