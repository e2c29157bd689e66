#include "orthogonalise.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>

namespace dsv3::muon {

at::Tensor orthogonalise(at::Tensor x, int64_t steps) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const bool tall = x.size(1) > x.size(2);
  if (tall) x = x.transpose(1, 2);
  // The clamp keeps the result finite for zero and tiny matrices, which stay small.
  x.div_(at::linalg_vector_norm(x, 2, at::IntArrayRef{1, 2}, /*keepdim=*/true).clamp_min_(1e-7));

  const int64_t matrices = x.size(0), side = x.size(1);
  at::Tensor gram = at::empty({matrices, side, side}, x.options());
  at::Tensor polynomial = at::empty_like(gram);
  at::Tensor next = at::empty({matrices, side, x.size(2)}, x.options());
  for (int64_t i = 0; i < steps; ++i) {
    at::bmm_out(gram, x, x.transpose(1, 2));
    at::baddbmm_out(polynomial, gram, gram, gram, b, c);
    at::baddbmm_out(next, x, polynomial, x, a, 1);
    std::swap(x, next);
  }
  return tall ? x.transpose(1, 2) : x;
}

at::Tensor orthogonality_errors(const at::Tensor& x) {
  const at::Tensor wide = x.size(1) > x.size(2) ? x.transpose(1, 2) : x;
  const at::Tensor gram = at::bmm(wide, wide.transpose(1, 2));
  gram.diagonal(0, 1, 2).sub_(1);
  return at::linalg_vector_norm(gram, 2, at::IntArrayRef{1, 2}, /*keepdim=*/false, at::kFloat)
      .div_(std::sqrt(double(wide.size(1))));
}

int64_t orthogonalise_bytes(int64_t rows, int64_t cols, at::ScalarType dtype) {
  const int64_t side = std::min(rows, cols);
  return 2 * (rows * cols + side * side) * int64_t(c10::elementSize(dtype));
}

}  // namespace dsv3::muon
