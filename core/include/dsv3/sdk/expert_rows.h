// Moves tokens to their experts and back: the permutation of a mixture of experts.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// The N * k rows of N tokens with k experts each, sorted by expert and then by token.
struct ExpertRows {
  at::Tensor source;  ///< int64 [N * k]: token * k + slot of each row
  at::Tensor row;     ///< int64 [N, k]: row of each token's slot, the inverse of `source`
  at::Tensor ends;    ///< int32 [E]: cumulative ends of the experts' rows, for grouped_linear()
  at::Tensor counts;  ///< int64 [E]: number of rows of each expert
};

/// `chosen` is int64 [N, k] with values in [0, experts).
ExpertRows sort_by_expert(const at::Tensor& chosen, int64_t experts);

/// x [N, D] -> [N * k, D]: copies each token's features to each of its rows.
at::Tensor gather_rows(const at::Tensor& x, const ExpertRows& rows);

/// y [N * k, D] -> [N, D]: sums each token's rows in the order of its slots.
at::Tensor sum_rows(const at::Tensor& y, const ExpertRows& rows);

}  // namespace dsv3
