// Tables of rotary angles, for position plugins.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// Cosines and sines of position * frequency. Computed in float64, then cast. On a CPU they are
/// read off a table that grows on demand; elsewhere they are computed in place, which needs no look
/// at the positions from the host. Safe to use from several threads.
class Angles {
 public:
  /// `frequencies` in radians a token, one for each feature pair; cosines and sines are multiplied
  /// by `scale`. The table starts with `positions` rows.
  Angles(std::vector<double> frequencies, double scale, int64_t positions);
  /// {cos, sin} at `positions` int64 [B, T], each [B, T, pairs]: float64 when `dtype` is, else
  /// fp32.
  std::pair<at::Tensor, at::Tensor> at(const at::Tensor& positions, at::ScalarType dtype) const;
  const std::vector<double>& frequencies() const { return frequencies_; }

 private:
  std::pair<at::Tensor, at::Tensor> table(int64_t positions) const;

  std::vector<double> frequencies_;
  double scale_;
  int64_t first_size_;
  mutable std::mutex mutex_;
  mutable at::Tensor cos_, sin_;  // float64 [positions, pairs]; replaced, never changed
};

/// RoPE's frequencies theta^(-2i / rotary_dim) (Su et al., arXiv 2104.09864). Throws dsv3::Error
/// when `rotary_dim` is odd.
std::vector<double> rotary_frequencies(int64_t rotary_dim, double theta);

}  // namespace dsv3
