#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/PhiloxRNGEngine.h>

#include <dsv3/runtime/model.h>

namespace dsv3 {
namespace {

/// FNV-1a hash of a parameter's name, which selects the parameter's stream of random numbers.
uint64_t hash_of(const std::string& name) {
  uint64_t hash = 14695981039346656037ull;
  for (const unsigned char c : name) hash = (hash ^ c) * 1099511628211ull;
  return hash;
}

/// Box-Muller transform: two normally distributed numbers from two uniformly distributed ones.
inline void normal_pair(uint32_t a, uint32_t b, float* out) {
  constexpr float step = 0x1p-32f;
  const float radius = std::sqrt(-2 * std::log((float(a) + 0.5f) * step));
  const float angle = float(2 * M_PI) * (float(b) * step);
  out[0] = radius * std::cos(angle);
  out[1] = radius * std::sin(angle);
}

/// Fills elements [begin, end) of the parameter. Each counter of Philox 4x32 with ten rounds
/// (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3") generates four elements.
void fill_normal(float* out, int64_t begin, int64_t end, uint64_t stream, uint64_t seed,
                 float std) {
  for (int64_t group = begin / 4; group * 4 < end; ++group) {
    at::Philox4_32 philox(seed, stream, group);
    float values[4];
    for (float* pair = values; pair != values + 4; pair += 2) {
      const uint32_t first = philox(), second = philox();
      normal_pair(first, second, pair);
    }
    for (int64_t lane = 0; lane < 4; ++lane) {
      const int64_t element = group * 4 + lane;
      if (element >= begin && element < end) out[element - begin] = std * values[lane];
    }
  }
}

}  // namespace

void initialise(at::Tensor& tensor, const std::string& name, const Init& init, double default_std,
                uint64_t seed, int64_t first) {
  if (tensor.is_meta()) return;
  const at::NoGradGuard no_grad;
  if (init.kind != Init::Kind::normal) {
    tensor.fill_(init.value);
    return;
  }
  const float std = float(init.std < 0 ? default_std : init.std);
  const bool direct =
      tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous();
  at::Tensor values = direct ? tensor.detach() : at::empty(tensor.sizes(), at::kFloat);
  float* out = values.data_ptr<float>();
  const uint64_t stream = hash_of(name);
  at::parallel_for(0, tensor.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    fill_normal(out + begin, first + begin, first + end, stream, seed, std);
  });
  if (!direct) tensor.copy_(values);
}

}  // namespace dsv3
