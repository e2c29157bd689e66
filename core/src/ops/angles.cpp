#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/error.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

at::Tensor outer(const at::Tensor& positions, const std::vector<double>& frequencies) {
  return positions.to(at::kDouble).unsqueeze(-1) * at::tensor(frequencies, at::kDouble);
}

}  // namespace

Angles::Angles(std::vector<double> frequencies, double scale, int64_t positions)
    : frequencies_(std::move(frequencies)), scale_(scale), initial_size_(positions) {}

std::pair<at::Tensor, at::Tensor> Angles::table(int64_t positions) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!cos_.defined() || cos_.size(0) < positions) {
    const int64_t grown = cos_.defined() ? 2 * cos_.size(0) : initial_size_;
    const at::Tensor angles = outer(at::arange(std::max(positions, grown)), frequencies_);
    cos_ = angles.cos() * scale_;
    sin_ = angles.sin() * scale_;
  }
  return {cos_, sin_};
}

std::pair<at::Tensor, at::Tensor> Angles::on_device(const at::Tensor& positions,
                                                    at::ScalarType dtype) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Recent& recent = recent_;
  if (recent.positions.is_same(positions) && recent.cos.scalar_type() == dtype)
    return {recent.cos, recent.sin};
  if (!rates_.defined() || rates_.device() != positions.device()) {
    const auto options = at::TensorOptions(at::kDouble).pinned_memory(positions.is_cuda());
    const at::Tensor host = at::empty({int64_t(frequencies_.size())}, options)
                                .copy_(at::tensor(frequencies_, at::kDouble));
    rates_ = host.to(positions.device(), /*non_blocking=*/true);
  }
  const at::Tensor angles = positions.to(at::kDouble).unsqueeze(-1) * rates_;
  recent = {positions, (angles.cos() * scale_).to(dtype), (angles.sin() * scale_).to(dtype)};
  return {recent.cos, recent.sin};
}

std::pair<at::Tensor, at::Tensor> Angles::at(const at::Tensor& positions,
                                             at::ScalarType dtype) const {
  const at::NoGradGuard no_grad;
  const at::ScalarType math = math_type(dtype);
  if (!positions.is_cpu()) return on_device(positions, math);
  const auto [cos, sin] = table(positions.numel() ? positions.max().item<int64_t>() + 1 : 1);
  const at::Tensor rows = positions.reshape({-1});
  std::vector<int64_t> shape = positions.sizes().vec();
  shape.push_back(static_cast<int64_t>(frequencies_.size()));
  return {cos.index_select(0, rows).to(math).view(shape),
          sin.index_select(0, rows).to(math).view(shape)};
}

std::vector<double> rotary_frequencies(int64_t rotary_dim, double theta) {
  if (rotary_dim < 2 || rotary_dim % 2 != 0)
    throw Error(
        "rotary position encodings rotate pairs of features, so the number of rotated features per "
        "head must be even and positive, not " +
            std::to_string(rotary_dim) +
            "; change the attention's rotary or head dimensions, or use position none",
        ExitCode::usage);
  std::vector<double> frequencies(rotary_dim / 2);
  for (int64_t i = 0; i < rotary_dim / 2; ++i)
    frequencies[i] = std::pow(theta, -2.0 * i / rotary_dim);
  return frequencies;
}

}  // namespace dsv3
