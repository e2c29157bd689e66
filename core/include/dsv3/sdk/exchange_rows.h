// Sends rows of tensors to the ranks that compute with them, as part of a differentiable function.
#pragma once

#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/communicator.h>

namespace dsv3 {

/// Sends the rows of `x` [N, ...] to the ranks of `group`: the first send[0] rows to rank 0, the
/// next send[1] to rank 1, and so on. Returns the rows that this rank receives, receive[i] from
/// rank i, in rank order. Numbers may be 0. The backward pass sends the gradients back. Collective,
/// also in the backward pass: every rank must reach it, even with 0 rows, so its result must be
/// used on every rank.
at::Tensor exchange_rows(const at::Tensor& x, std::vector<int64_t> send,
                         std::vector<int64_t> receive, std::shared_ptr<Communicator> group);

}  // namespace dsv3
