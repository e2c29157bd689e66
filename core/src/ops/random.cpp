// Counter-based random numbers. The generator is SplitMix64 (Steele, Lea and Flood, "Fast
// splittable pseudorandom number generators", 2014), evaluated at an element's index.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/random.h>

namespace dsv3 {
namespace {

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15, kFirst = 0xbf58476d1ce4e5b9,
                   kSecond = 0x94d049bb133111eb;
constexpr int kBits = 24;  // of a number in [0, 1), which fp32 represents exactly

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * kFirst;
  x = (x ^ (x >> 27)) * kSecond;
  return x ^ (x >> 31);
}

/// x >> bits of unsigned numbers, which LibTorch does not have.
at::Tensor shifted(const at::Tensor& x, int bits) {
  return x.bitwise_right_shift(bits).bitwise_and((int64_t{1} << (64 - bits)) - 1);
}

/// mix() on a device. Products of int64 wrap like those of uint64.
at::Tensor mix(const at::Tensor& x) {
  at::Tensor y = x.bitwise_xor(shifted(x, 30)) * int64_t(kFirst);
  y = y.bitwise_xor(shifted(y, 27)) * int64_t(kSecond);
  return y.bitwise_xor(shifted(y, 31));
}

uint64_t key_of(const StepKey& key, int64_t stream) {
  uint64_t state = 0;
  for (const int64_t part : {int64_t(key.seed), key.step, key.layer, key.sublayer, stream})
    state = mix(state + kGamma + uint64_t(part));
  return state;
}

/// i * kGamma for i in [first, first + count), shape [count].
at::Tensor multiples(int64_t first, int64_t count, at::Device device) {
  return at::arange(first, first + count, at::TensorOptions().dtype(at::kLong).device(device)) *
         int64_t(kGamma);
}

}  // namespace

at::Tensor uniform(const StepKey& key, at::IntArrayRef sizes, at::Device device, int64_t stream) {
  TORCH_CHECK(!sizes.empty(), "uniform: sizes must have a dimension for the rows");
  const int64_t rows = sizes[0], width = c10::multiply_integers(sizes.slice(1));
  const uint64_t base = key_of(key, stream);
  if (!device.is_cpu()) {
    const at::Tensor row_keys = mix(multiples(key.first_row + 1, rows, device) + int64_t(base));
    const at::Tensor bits = mix(row_keys.unsqueeze(1) + multiples(1, width, device));
    return (shifted(bits, 64 - kBits).to(at::kFloat) * 0x1p-24f).view(sizes);
  }
  at::Tensor result = at::empty(sizes, at::kFloat);
  float* out = result.data_ptr<float>();
  at::parallel_for(0, rows * width, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t row_key = mix(base + uint64_t(key.first_row + i / width + 1) * kGamma);
      const uint64_t bits = mix(row_key + uint64_t(i % width + 1) * kGamma);
      out[i] = float(bits >> (64 - kBits)) * 0x1p-24f;
    }
  });
  return result;
}

at::Tensor dropout(const at::Tensor& x, double p, const Sequence& seq, int64_t stream) {
  if (!(p >= 0 && p < 1))
    throw Error("dropout: p is " + std::to_string(p) + "; it must be at least 0 and below 1",
                ExitCode::usage);
  if (p == 0 || !seq.training) return x;
  const at::Tensor keep = uniform(seq.key, x.sizes(), x.device(), stream).ge(p);
  return x * keep.to(x.scalar_type()) * (1 / (1 - p));
}

}  // namespace dsv3
