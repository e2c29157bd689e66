// Permutes token rows for a mixture of experts: groups them by expert, and restores their order.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// The rows of N tokens, each of which is routed to k experts: N * k rows, sorted by expert and
/// then by token.
struct ExpertRows {
  at::Tensor source;  ///< int64 [N * k]: token * k + slot for each row, where slot is the index in
                      ///< the token's k experts
  at::Tensor row;     ///< int64 [N, k]: row for each token and slot; the inverse of `source`
  at::Tensor ends;    ///< int32 [E]: index after each expert's last row, for grouped_linear()
  at::Tensor counts;  ///< int64 [E]: number of rows for each expert
};

/// Sorts tokens by expert. `chosen` int64 [N, k] contains each token's experts, in [0, experts).
ExpertRows sort_by_expert(const at::Tensor& chosen, int64_t experts);

/// x [N, D] -> [N * k, D]: copies each token's features to all of its rows.
at::Tensor gather_rows(const at::Tensor& x, const ExpertRows& rows);

/// y [N * k, D] -> [N, D]: sums the k rows of each token in slot order.
at::Tensor sum_rows(const at::Tensor& y, const ExpertRows& rows);

}  // namespace dsv3
