// Positions, attention masks and targets for rows of packed documents.
#pragma once

#include <memory>
#include <mutex>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// Returns int64 [B, T] positions that restart at 0 where `document_ids` [B, T] changes.
at::Tensor positions_of(const at::Tensor& document_ids);

/// Documents that share rows, so that tokens attend only within their document.
class Packing {
 public:
  /// An arbitrary mask: bool [B, 1, T, T] (or a shape that broadcasts to it), true = may attend.
  explicit Packing(at::Tensor mask);
  /// `document_ids` int64 [B, T], on the model's device. `boundaries` int32 [documents + 1], same
  /// device: offsets of all documents in the flattened rows, then B * T. `longest`: number of
  /// tokens in the longest document.
  Packing(at::Tensor document_ids, at::Tensor boundaries, int64_t longest);

  /// bool [B, 1, T, T], true where a query may attend to a key: in the same document and not later.
  /// Built at its first use. Thread-safe.
  at::Tensor mask() const;
  /// int64 [B, T]: index in its row of the first token of each token's document. Undefined for an
  /// arbitrary mask. Built at its first use. Thread-safe. The host does not wait for a GPU.
  at::Tensor starts() const;
  /// Offsets of all documents, as passed to the constructor; undefined for an arbitrary mask.
  const at::Tensor& boundaries() const { return boundaries_; }
  int64_t longest() const { return longest_; }

 private:
  at::Tensor document_ids_, boundaries_;
  int64_t longest_ = 0;
  mutable std::mutex mutex_;
  mutable at::Tensor mask_, starts_;
};

/// Returns the packing of rows on the host, with `document_ids` int64 [B, T]. Returns null if every
/// row is one document, so that attention can use plain causal masking.
std::shared_ptr<const Packing> packing_of(const at::Tensor& document_ids);

/// Returns int64 [B, T] targets `depth` + 1 tokens after each input in tokens[:, :T]. Depth 0 is
/// the main model. A target is -1 if its token is outside the row, in another document, or padding.
/// tokens and document_ids are [B, T + 1]; document_ids may be undefined.
at::Tensor shifted_targets(const at::Tensor& tokens, const at::Tensor& document_ids, int64_t depth);

}  // namespace dsv3
