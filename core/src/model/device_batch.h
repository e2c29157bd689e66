// A micro-batch on the model's device.
#pragma once

#include <utility>
#include <vector>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/data.h>

namespace dsv3 {

struct DeviceBatch {
  at::Tensor tokens;                ///< int64 [B, T + 1]
  std::vector<at::Tensor> targets;  ///< int64 [B * T]: of the main model, then of each MTP depth
  Sequence seq;                     ///< positions, document ids and packing
};

/// Moves a micro-batch to `device`, with targets for the first `losses` losses. Copies everything
/// in one transfer from pinned memory, which the host does not wait for.
DeviceBatch to_device(const Batch& batch, int64_t losses, at::Device device);

/// Offsets of all documents in the flattened rows of `document_ids` (int64 [B, T], on the host),
/// then B * T, as int64; and the number of tokens in the longest document.
std::pair<at::Tensor, int64_t> document_boundaries(const at::Tensor& document_ids);

}  // namespace dsv3
