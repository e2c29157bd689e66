#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/flat.h>

// The compiler builds one clone per processor generation, and the loader picks one when it loads
// the library. ThreadSanitizer does not support this, because it is not initialised at that time.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define DSV3_CPU_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define DSV3_CPU_CLONES
#endif

namespace dsv3 {
namespace {

constexpr int64_t kAlignment = 32;  // in elements; 64 bytes for a 16-bit type
constexpr int64_t kChunk = 1 << 16;

using Wide = double __attribute__((vector_size(64)));
using Narrow = float __attribute__((vector_size(32), aligned(4)));

DSV3_CPU_CLONES double squares(const float* x, int64_t n) {
  Wide sums[4] = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    for (int lane = 0; lane < 4; ++lane) {
      const Wide values =
          __builtin_convertvector(*reinterpret_cast<const Narrow*>(x + i + 8 * lane), Wide);
      sums[lane] += values * values;
    }
  const Wide all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = 0;
  for (int lane = 0; lane < 8; ++lane) sum += all[lane];
  for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

double sum_on_cpu(const float* x, int64_t n) {
  std::vector<double> chunks((n + kChunk - 1) / kChunk);
  at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      chunks[i] = squares(x + i * kChunk, std::min(kChunk, n - i * kChunk));
  });
  double sum = 0;
  for (double chunk : chunks) sum += chunk;
  return sum;
}

double sum_of_squares(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat && tensor.is_contiguous())
    return sum_on_cpu(tensor.const_data_ptr<float>(), tensor.numel());
  return tensor.to(at::kDouble).square().sum().item<double>();
}

}  // namespace

FlatLayout::FlatLayout(const std::vector<UnitParam>& params) {
  for (const UnitParam& param : params) {
    places_.push_back({size_, param.tensor.sizes().vec()});
    size_ += (param.tensor.numel() + kAlignment - 1) / kAlignment * kAlignment;
  }
}

at::Tensor FlatLayout::view(const at::Tensor& flat, size_t index) const {
  if (!flat.defined()) return {};
  const Place& place = places_.at(index);
  return flat.narrow(0, place.offset, c10::multiply_integers(place.shape)).view(place.shape);
}

Range whole_range(const UnitParam& param) {
  Range range;
  range.name = param.name;
  range.box_shape = param.tensor.sizes().vec();
  range.global_shape = param.global_shape.empty() ? range.box_shape : param.global_shape;
  range.box_offset = param.box_offset;
  range.box_offset.resize(range.box_shape.size(), 0);
  range.end = param.tensor.numel();
  return range;
}

std::vector<Range> update_ranges(const UnitParam& param, bool whole_matrices) {
  const Range whole = whole_range(param);
  if (!whole_matrices || whole.box_shape.size() < 2) return {whole};
  if (whole.end % (param.matrices * whole.box_shape.back()) != 0)
    throw Error("parameter '" + param.name + "' of shape " + c10::str(param.tensor.sizes()) +
                    " cannot be split into " + std::to_string(param.matrices) +
                    " matrices, as its optimizer requires; move it to another optimizer group",
                ExitCode::usage);
  const int64_t elements = whole.end / param.matrices;
  std::vector<Range> ranges(param.matrices, whole);
  for (int64_t i = 0; i < param.matrices; ++i) {
    ranges[i].begin = i * elements;
    ranges[i].end = (i + 1) * elements;
  }
  return ranges;
}

at::Tensor piece_of(const at::Tensor& tensor, const Range& range, bool whole_matrices) {
  if (!tensor.defined()) return {};
  const at::Tensor flat = tensor.view({-1}).narrow(0, range.begin, range.end - range.begin);
  return whole_matrices ? flat.view({-1, range.box_shape.back()}) : flat;
}

at::Tensor norm_of(at::TensorList tensors, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  if (device.is_cpu()) {
    double sum = 0;
    for (const at::Tensor& tensor : tensors)
      if (tensor.defined()) sum += sum_of_squares(tensor);
    return at::full({}, std::sqrt(sum), options);
  }
  std::vector<at::Tensor> norms;
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined())
      norms.push_back(at::linalg_vector_norm(tensor, 2, std::nullopt, false, at::kDouble));
  return norms.empty() ? at::zeros({}, options) : at::linalg_vector_norm(at::stack(norms), 2);
}

void scale_gradient(const at::Tensor& gradient, const at::Tensor& factor) {
  gradient.mul_(factor);
  if (!gradient.is_cpu() || factor.item<double>() == 0)
    gradient.masked_fill_(factor.eq(0), 0);  // 0 * NaN is NaN
}

}  // namespace dsv3
