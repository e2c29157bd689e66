// A micro-batch on the model's device.
#pragma once

#include <utility>
#include <vector>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/data.h>

namespace dsv3 {

struct DeviceBatch {
  at::Tensor tokens;                ///< int64 [B, T + 1]
  std::vector<at::Tensor> targets;  ///< int64 [B * T]; main model, then each MTP depth
  Sequence seq;                     ///< positions, document ids and packing
};

/// Moves a micro-batch to `device`, with the first `losses` target tensors (main model, then MTP
/// depths). Copies everything from pinned memory in one asynchronous transfer.
DeviceBatch to_device(const Batch& batch, int64_t losses, at::Device device);

/// Returns the offset of each document in the flattened rows of `document_ids` (int64 [B, T], on
/// the host), followed by B * T, as an int64 tensor. Also returns the length of the longest
/// document in tokens.
std::pair<at::Tensor, int64_t> document_boundaries(const at::Tensor& document_ids);

}  // namespace dsv3
