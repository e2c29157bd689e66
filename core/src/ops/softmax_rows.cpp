#include "ops/softmax_rows.h"

#include <limits>

#include "ops/simd.h"

namespace dsv3::softmax_rows {
namespace {

using Floats = simd::Vec<float>;
constexpr int64_t lanes = simd::Math<float>::lanes;
constexpr float infinity = std::numeric_limits<float>::infinity();

/// The last, incomplete vector of a row, padded with -inf, which changes neither sum nor maximum.
template <class T>
DSV3_INLINE Floats load_end(const T* from, int64_t count) {
  Floats value = simd::load(from, count);
  for (int64_t lane = count; lane < lanes; ++lane) value[lane] = -infinity;
  return value;
}

template <class T>
DSV3_INLINE float largest_of(const T* row, int64_t size) {
  Floats most = Floats{} - infinity;
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    const Floats value = simd::load(row + i);
    most = value > most ? value : most;
  }
  if (i < size) {
    const Floats value = load_end(row + i, size - i);
    most = value > most ? value : most;
  }
  float largest = -infinity;
  for (int64_t lane = 0; lane < lanes; ++lane)
    if (most[lane] > largest) largest = most[lane];
  return largest;
}

template <class T>
DSV3_INLINE Stats stats_of(const T* row, int64_t size) {
  const float largest = largest_of(row, size);
  Floats sums[2] = {};  // two chains of additions hide each other's latency
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    sums[0] += simd::exp(simd::load(row + i) - largest);
    sums[1] += simd::exp(simd::load(row + i + lanes) - largest);
  }
  if (i + lanes <= size) {
    sums[0] += simd::exp(simd::load(row + i) - largest);
    i += lanes;
  }
  if (i < size) sums[1] += simd::exp(load_end(row + i, size - i) - largest);
  return {largest, simd::sum<float>(sums[0] + sums[1])};
}

template <class T>
DSV3_INLINE void write_to(T* row, int64_t size, float largest, float factor) {
  simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
    simd::store(row + i, simd::exp(simd::load(row + i, n) - largest) * factor, n);
  });
}

}  // namespace

DSV3_CLONES Stats stats(const float* row, int64_t size) {
  return stats_of(row, size);
}
DSV3_CLONES Stats stats(const c10::BFloat16* row, int64_t size) {
  return stats_of(row, size);
}
DSV3_CLONES void write(float* row, int64_t size, float largest, float factor) {
  write_to(row, size, largest, factor);
}
DSV3_CLONES void write(c10::BFloat16* row, int64_t size, float largest, float factor) {
  write_to(row, size, largest, factor);
}

}  // namespace dsv3::softmax_rows
