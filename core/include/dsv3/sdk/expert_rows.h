// Moves tokens to their experts and back, i.e. permutes the rows of a mixture of experts.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// The N * k rows for N tokens with k experts each, sorted by expert and then by token.
struct ExpertRows {
  at::Tensor source;  ///< int64 [N * k]: token * k + slot for each row
  at::Tensor row;     ///< int64 [N, k]: row for each token and slot; the inverse of `source`
  at::Tensor ends;    ///< int32 [E]: end of each expert's rows, for grouped_linear()
  at::Tensor counts;  ///< int64 [E]: number of rows for each expert
};

/// `chosen` is int64 [N, k] with values in [0, experts).
ExpertRows sort_by_expert(const at::Tensor& chosen, int64_t experts);

/// x [N, D] -> [N * k, D]: copies each token's features to each of its rows.
at::Tensor gather_rows(const at::Tensor& x, const ExpertRows& rows);

/// y [N * k, D] -> [N, D]: sums each token's rows in slot order.
at::Tensor sum_rows(const at::Tensor& y, const ExpertRows& rows);

}  // namespace dsv3
