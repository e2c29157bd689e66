// AdamW on plain arrays: weight decay, both moments and the update in one pass over memory.
#pragma once

#include <cstdint>

namespace dsv3::adamw {

/// Coefficients for one update; see adamw.cpp.
struct Coefficients {
  float decay;  ///< 1 - lr * weight_decay
  float beta1;
  float beta2;
  float step_size;  ///< lr / (1 - beta1^update)
  float root;       ///< 1 / sqrt(1 - beta2^update)
  float eps;
};

/// Updates n elements in place. The arrays do not overlap.
void update(float* value, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t n,
            const Coefficients& c);

}  // namespace dsv3::adamw
