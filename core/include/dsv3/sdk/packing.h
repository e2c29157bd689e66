// Packs documents into rows: positions, masks, targets.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// int64 [B, T] positions that restart at 0 where `document_ids` [B, T] changes.
at::Tensor positions_of(const at::Tensor& document_ids);

/// bool [B, 1, T, T], true where a query may attend to a key: in the same document and not later.
/// Undefined if every row of `document_ids` [B, T] is one document, so that attention can use plain
/// causal masking.
at::Tensor attention_mask(const at::Tensor& document_ids);

/// int64 [B, T] targets `depth` + 1 tokens ahead (depth 0 is the main model) of inputs
/// tokens[:, :T]; -1 where that token is outside the row, in another document, or padding. tokens
/// and document_ids are [B, T + 1]; document_ids may be undefined.
at::Tensor shifted_targets(const at::Tensor& tokens, const at::Tensor& document_ids, int64_t depth);

}  // namespace dsv3
