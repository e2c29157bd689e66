// Tables of rotation angles for position plugins.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// Cosines and sines of position * frequency, computed in float64 and then cast. On a CPU, they are
/// looked up in a table that grows on demand. On other devices, they are computed directly, so that
/// the host does not have to read the positions. Thread-safe.
class Angles {
 public:
  /// `frequencies` contains one value in radians per token for each feature pair. Cosines and sines
  /// are multiplied by `scale`. The table initially covers positions below `positions`.
  Angles(std::vector<double> frequencies, double scale, int64_t positions);
  /// Returns {cos, sin} at `positions` int64 [B, T]. Both are [B, T, pairs], in float64 if `dtype`
  /// is float64, else in fp32.
  std::pair<at::Tensor, at::Tensor> at(const at::Tensor& positions, at::ScalarType dtype) const;
  const std::vector<double>& frequencies() const { return frequencies_; }

 private:
  std::pair<at::Tensor, at::Tensor> table(int64_t positions) const;
  std::pair<at::Tensor, at::Tensor> on_device(const at::Tensor& positions,
                                              at::ScalarType dtype) const;

  /// Caches the last result for positions that are not on the CPU, because all layers pass the same
  /// tensor for a micro-batch.
  struct Recent {
    at::Tensor positions, cos, sin;
  };

  std::vector<double> frequencies_;
  double scale_;
  int64_t initial_size_;
  mutable std::mutex mutex_;
  mutable at::Tensor cos_, sin_;  // float64 [positions, pairs]; replaced, never modified
  mutable at::Tensor rates_;      // frequencies on the device, float64 [pairs]
  mutable Recent recent_;
};

/// Returns RoPE's frequencies theta^(-2i / rotary_dim) (Su et al., arXiv 2104.09864). Throws
/// dsv3::Error if `rotary_dim` is odd.
std::vector<double> rotary_frequencies(int64_t rotary_dim, double theta);

}  // namespace dsv3
