// Shared by the fused operators: when the CPU loops apply, and dispatch by type.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/simd.h"

namespace dsv3 {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool reference_ops();

/// True if the fused CPU loops support `tensor`.
inline bool fused_on_cpu(const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return tensor.is_cpu() && !reference_ops() &&
         (type == at::kFloat || type == at::kBFloat16 || type == at::kDouble);
}

/// The type in which values of `type` are computed: float64 for float64, else fp32.
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

/// The smallest number of rows that is worth another thread.
inline int64_t row_grain(int64_t row_size) {
  return std::max<int64_t>(1, (1 << 14) / row_size);
}

}  // namespace dsv3
