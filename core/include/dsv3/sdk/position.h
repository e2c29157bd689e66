// Interface of positional encodings.
#pragma once

#include <utility>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// What a position plugin is built with, next to its options.
struct PositionContext {
  int64_t rotary_dim = 0;  ///< R, features a head to rotate
  int64_t sequence = 0;    ///< training length in tokens
};

class Position {
 public:
  virtual ~Position();
  /// q [B, T, H, R], k [B, T, Hk, R] (MLA: Hk = 1), positions int64 [B, T]. Same shapes and dtypes
  /// back.
  virtual std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& positions) const = 0;
  /// Multiplies qk_dim^-0.5 (YaRN's mscale).
  virtual double softmax_scale() const { return 1.0; }
};

}  // namespace dsv3
