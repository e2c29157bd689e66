// Shared by the fused operators: conditions for the CPU loops, dispatch by dtype, and short vectors
// that use the compiler's vector extension, so that one source serves every instruction set.
// Kernels are marked DSV3_CLONES: the loader picks AVX-512, AVX2 or baseline code. This does not
// work with ThreadSanitizer, which is not yet initialised when the loader picks the code.
#pragma once

#include <cmath>
#include <cstring>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <dsv3/sdk/ops.h>

#include "ops/meta.h"

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define DSV3_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DSV3_CLONES
#endif
// Everything that a kernel calls must be inlined into the kernel. Otherwise it runs as baseline
// code.
#define DSV3_ALWAYS_INLINE __attribute__((always_inline))
#define DSV3_INLINE inline DSV3_ALWAYS_INLINE

// GCC warns about the calling convention of vectors, which is irrelevant between inlined functions.
// Parameters are references, because passing vectors by value causes a compiler note that no pragma
// silences.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace dsv3::simd {

/// The types used to compute with values of type `T`: fp32 for bf16 and fp32, float64 for float64.
template <class T>
struct Math {
  using Scalar = float;
  using Vec = float __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 16;
};
template <>
struct Math<double> {
  using Scalar = double;
  using Vec = double __attribute__((vector_size(64)));
  static constexpr int64_t lanes = 8;
};

template <class T>
using Scalar = typename Math<T>::Scalar;
template <class T>
using Vec = typename Math<T>::Vec;

using Half16 = uint16_t __attribute__((vector_size(32)));
using Word16 = uint32_t __attribute__((vector_size(64)));
using Int16 = int32_t __attribute__((vector_size(64)));

DSV3_INLINE Math<float>::Vec widen(const Half16& bits) {
  const Word16 words = __builtin_convertvector(bits, Word16) << 16;
  return (Math<float>::Vec)words;
}

// Rounds to nearest even; NaN stays NaN.
DSV3_INLINE Half16 narrow(const Math<float>::Vec& value) {
  const Word16 words = (Word16)value;
  const Word16 rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
  const Word16 quiet = (words >> 16) | 0x40u;
  const Int16 nan = value != value;
  return __builtin_convertvector(((Word16)nan & quiet) | (~(Word16)nan & rounded), Half16);
}

/// Reads a full vector.
template <class T>
DSV3_INLINE Vec<T> load(const T* from) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    Half16 bits;
    std::memcpy(&bits, from, sizeof(bits));
    return widen(bits);
  } else {
    Vec<T> value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
}

/// Writes a full vector.
template <class T>
DSV3_INLINE void store(T* to, const Vec<T>& value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const Half16 bits = narrow(value);
    std::memcpy(to, &bits, sizeof(bits));
  } else {
    std::memcpy(to, &value, sizeof(value));
  }
}

/// Reads the first `count` lanes and sets the others to zero.
template <class T>
DSV3_INLINE Vec<T> load(const T* from, int64_t count) {
  if (count == Math<T>::lanes) return simd::load(from);
  T buffer[Math<T>::lanes] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return simd::load(buffer);
}

/// Writes the first `count` lanes.
template <class T>
DSV3_INLINE void store(T* to, const Vec<T>& value, int64_t count) {
  if (count == Math<T>::lanes) return simd::store(to, value);
  T buffer[Math<T>::lanes];
  simd::store(buffer, value);
  std::memcpy(to, buffer, count * sizeof(T));
}

/// Rounds a value to `T` and back.
template <class T>
DSV3_INLINE Vec<T> rounded(const Vec<T>& value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) return widen(narrow(value));
  return value;
}

/// Sum of all lanes, added in a fixed order.
template <class T>
DSV3_INLINE Scalar<T> sum(const Vec<T>& lanes) {
  Vec<T> value = lanes;
  for (int64_t width = Math<T>::lanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) value[i] += value[i + width];
  return value[0];
}

/// Calls body(offset, number of lanes) for the vectors that cover [0, size).
template <class T, class Body>
DSV3_INLINE void each_vector(int64_t size, const Body& body) {
  constexpr int64_t lanes = Math<T>::lanes;
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) body(i, lanes);
  if (i < size) body(i, size - i);
}

// exp with an error of about 1 ulp, clamped to the range of normal numbers.
DSV3_INLINE Math<float>::Vec exp(const Math<float>::Vec& value) {
  using V = Math<float>::Vec;
  V x = value > 88.0f ? V{} + 88.0f : value;
  x = x < -87.0f ? V{} - 87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23; x + magic has round(x) in its low bits
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2, in two parts
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Word16 power = (Word16)((__builtin_convertvector(n, Int16) + 127) << 23);
  return p * (V)power;
}

DSV3_INLINE Math<double>::Vec exp(const Math<double>::Vec& value) {
  Math<double>::Vec x = value;
  for (int i = 0; i < Math<double>::lanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

/// 1 / (1 + exp(-x)).
template <class V>
DSV3_INLINE V sigmoid(const V& x) {
  return 1 / (1 + exp(-x));
}

}  // namespace dsv3::simd

namespace dsv3 {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether the fused CPU loops support `tensor`. On meta tensors they run without their kernels.
inline bool fused_on_cpu(const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return on_cpu(tensor) && !reference_ops() &&
         (type == at::kFloat || type == at::kBFloat16 || type == at::kDouble);
}

/// The dtype used to compute with values of dtype `type`: float64 for float64, else fp32.
inline at::ScalarType math_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

/// Calls body(T{}), where T is the C++ type for the dtype of `tensor`, which fused_on_cpu()
/// accepts. Does nothing for meta tensors, which have no data.
template <class Body>
void for_type(const at::Tensor& tensor, const Body& body) {
  if (tensor.is_meta()) return;
  const at::ScalarType type = tensor.scalar_type();
  if (type == at::kDouble) return body(double{});
  if (type == at::kBFloat16) return body(c10::BFloat16{});
  body(float{});
}

/// The smallest number of rows for which using another thread is worthwhile.
inline int64_t row_grain(int64_t row_size) {
  return std::max<int64_t>(1, (1 << 14) / row_size);
}

}  // namespace dsv3
