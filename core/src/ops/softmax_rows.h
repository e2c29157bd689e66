// CPU kernels over one row of logits, for linear_cross_entropy.
#pragma once

#include <cstdint>

#include <c10/util/BFloat16.h>

namespace dsv3::softmax_rows {

/// Largest value of a row and the sum of exp(value - largest). NaN in the row gives a NaN sum.
struct Stats {
  float largest, sum;
};
Stats stats(const float* row, int64_t size);
Stats stats(const c10::BFloat16* row, int64_t size);

/// row = exp(row - largest) * factor, in place.
void write(float* row, int64_t size, float largest, float factor);
void write(c10::BFloat16* row, int64_t size, float largest, float factor);

}  // namespace dsv3::softmax_rows
