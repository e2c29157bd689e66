// Newton-Schulz orthogonalisation of a batch of matrices.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3::muon {

/// Replaces each matrix U S V^T of `x` [n, rows, cols] with approximately U V^T, by Keller Jordan's
/// quintic iteration: X <- a X + (b A + c A^2) X with A = X X^T and (a, b, c) = (3.4445, -4.7750,
/// 2.0315), from X / max(|X|, 1e-7), transposed if rows > cols. Singular values converge to about
/// [0.7, 1.2]. Computes in x's dtype (fp32 or bf16) and may overwrite x.
at::Tensor orthogonalise(at::Tensor x, int64_t steps);

/// Returns |X X^T - I|_F / sqrt(n) of each matrix [n, m] in `x` [matrices, n, m], transposed if n >
/// m: the root mean square of s^2 - 1 over the singular values s. Computes in x's dtype, and
/// allocates less than orthogonalise().
at::Tensor orthogonality_errors(const at::Tensor& x);

/// Number of bytes that orthogonalise() allocates for one matrix, including x and the result.
int64_t orthogonalise_bytes(int64_t rows, int64_t cols, at::ScalarType dtype);

}  // namespace dsv3::muon
