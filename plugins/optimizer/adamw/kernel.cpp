#include "kernel.h"

// The compiler builds one copy per processor generation, and the loader picks one when it loads the
// library. ThreadSanitizer does not support this, because it is not initialised at that time.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define DSV3_CPU_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define DSV3_CPU_CLONES
#endif

namespace dsv3::adamw {

DSV3_CPU_CLONES
void update(float* __restrict value, const float* __restrict grad, float* __restrict exp_avg,
            float* __restrict exp_avg_sq, int64_t n, const Coefficients& coefficients) {
  const Coefficients c = coefficients;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i];
    const float m = exp_avg[i] + (1 - c.beta1) * (g - exp_avg[i]);
    const float v = c.beta2 * exp_avg_sq[i] + (1 - c.beta2) * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    value[i] = c.decay * value[i] - c.step_size * m / (__builtin_sqrtf(v) * c.root + c.eps);
  }
}

}  // namespace dsv3::adamw
