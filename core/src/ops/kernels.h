// What the fused operators share: when the CPU loops apply, and calling a kernel for the right
// type.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/simd.h"

namespace dsv3 {

bool reference_ops();

/// Elements worth handing to another thread.
constexpr int64_t kGrain = 1 << 14;

/// True when the fused CPU loops take `tensor`.
inline bool fused_on_cpu(const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return tensor.is_cpu() && !reference_ops() &&
         (type == at::kFloat || type == at::kBFloat16 || type == at::kDouble);
}

/// The type that a computation on `type` runs in: float64 stays, all else is fp32.
inline at::ScalarType math_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

/// Calls body(T{}) for the type of a tensor that fused_on_cpu() accepts.
template <class Body>
void for_type(at::ScalarType type, const Body& body) {
  if (type == at::kDouble) return body(double{});
  if (type == at::kBFloat16) return body(c10::BFloat16{});
  body(float{});
}

/// Rows a thread should take at least.
inline int64_t row_grain(int64_t row_size) {
  return std::max<int64_t>(1, kGrain / row_size);
}

}  // namespace dsv3
