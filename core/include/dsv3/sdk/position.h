// Interface for positional encodings.
#pragma once

#include <utility>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/pluggable.h>
#include <dsv3/sdk/step.h>

namespace dsv3 {

/// What a position plugin receives besides its options.
struct PositionContext {
  int64_t rotary_dim = 0;  ///< R, number of features per head to rotate
  int64_t sequence = 0;    ///< training length in tokens
};

class Position : public Pluggable {
 public:
  ~Position() override;
  /// Applies the encoding to q [B, T, H, R] and k [B, T, Hk, R] (MLA: Hk = 1) at `positions`, which
  /// is int64 [B, T]. Returns both with unchanged shapes and dtypes.
  virtual std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& positions) const = 0;
  /// Factor by which attention multiplies its softmax scale qk_dim^-0.5 (YaRN's mscale).
  virtual double softmax_scale() const { return 1.0; }
  /// Called after every optimizer step that was not skipped. `counts` is undefined.
  virtual void on_step_end(const StepEnd&) {}
};

}  // namespace dsv3
