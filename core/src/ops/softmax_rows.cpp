#include "ops/softmax_rows.h"

#include <cstring>
#include <limits>

// One source for all CPUs: 16 lanes of GCC's vector extension are one AVX-512 register, two of
// AVX2, four of SSE, and add up in the same order on each. Lanes never cross a call, so their ABI
// does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"
#define DSV3_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define DSV3_INLINE inline __attribute__((always_inline))

namespace dsv3::softmax_rows {
namespace {

constexpr int64_t lanes = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

constexpr float infinity = std::numeric_limits<float>::infinity();

DSV3_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

DSV3_INLINE void store(float* p, const Floats& v) {
  std::memcpy(p, &v, sizeof v);
}

DSV3_INLINE Floats load(const Bf16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return (Floats)(__builtin_convertvector(h, Words) << 16);
}

// Rounds to the nearest, ties to even.
DSV3_INLINE void store(Bf16* p, const Floats& v) {
  Words w = (Words)v;
  w = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  const Halves h = __builtin_convertvector(w, Halves);
  std::memcpy(p, &h, sizeof h);
}

// The last, incomplete group of a row, filled up with -inf.
template <class T>
DSV3_INLINE Floats load_tail(const T* p, int64_t count) {
  T padded[lanes];
  const float filler[lanes] = {-infinity, -infinity, -infinity, -infinity, -infinity, -infinity,
                               -infinity, -infinity, -infinity, -infinity, -infinity, -infinity,
                               -infinity, -infinity, -infinity, -infinity};
  store(padded, load(filler));
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}

// e^x for x <= 0, to about one unit in the last place: x = n ln 2 + r, a polynomial of degree 6 for
// e^r. Below -87, where results would be denormal, it gives e^-87. NaN stays NaN: comparisons are
// written so.
DSV3_INLINE Floats exponential(Floats x) {
  constexpr float rounder =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504f + rounder;
  const Floats n = shifted - rounder;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Words power = ((Words)shifted << 23) + 0x3f800000u;  // 2^n
  return p * (Floats)power;
}

template <class T>
DSV3_INLINE Stats stats_of(const T* row, int64_t size) {
  const int64_t whole = size / lanes * lanes;
  Floats most = Floats{} - infinity;
  for (int64_t i = 0; i < whole; i += lanes) {
    const Floats v = load(row + i);
    most = v > most ? v : most;
  }
  if (whole < size) {
    const Floats v = load_tail(row + whole, size - whole);
    most = v > most ? v : most;
  }
  float largest = -infinity;
  for (int64_t lane = 0; lane < lanes; ++lane)
    if (most[lane] > largest) largest = most[lane];

  Floats sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * lanes <= whole; i += 2 * lanes) {
    sums[0] += exponential(load(row + i) - largest);
    sums[1] += exponential(load(row + i + lanes) - largest);
  }
  if (i < whole) sums[0] += exponential(load(row + i) - largest);
  if (whole < size) sums[1] += exponential(load_tail(row + whole, size - whole) - largest);
  double sum = 0;
  for (int64_t lane = 0; lane < lanes; ++lane) sum += double(sums[0][lane]) + sums[1][lane];
  return {largest, float(sum)};
}

template <class T>
DSV3_INLINE void write_to(T* row, int64_t size, float largest, float factor) {
  const int64_t whole = size / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes)
    store(row + i, exponential(load(row + i) - largest) * factor);
  if (whole == size) return;
  T tail[lanes];
  store(tail, exponential(load_tail(row + whole, size - whole) - largest) * factor);
  std::memcpy(row + whole, tail, (size - whole) * sizeof(T));
}

}  // namespace

DSV3_CLONES Stats stats(const float* row, int64_t size) {
  return stats_of(row, size);
}
DSV3_CLONES Stats stats(const Bf16* row, int64_t size) {
  return stats_of(row, size);
}
DSV3_CLONES void write(float* row, int64_t size, float largest, float factor) {
  write_to(row, size, largest, factor);
}
DSV3_CLONES void write(Bf16* row, int64_t size, float largest, float factor) {
  write_to(row, size, largest, factor);
}

}  // namespace dsv3::softmax_rows
