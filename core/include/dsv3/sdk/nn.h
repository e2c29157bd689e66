// The basic layers that nearly all components use: linear, RMSNorm and LayerNorm.
#pragma once

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// y = x W^T + b. W is [out, in], as in torch.nn.Linear.
class Linear {
 public:
  Linear() = default;
  /// Declares "<owner's prefix>.<name>.weight" and, if `bias`, "<name>.bias" [out], with initial
  /// values of 0.
  Linear(Component& owner, const std::string& name, int64_t in, int64_t out, ParamSpec spec = {},
         bool bias = false);
  at::Tensor operator()(const at::Tensor& x) const;  // [..., in] -> [..., out]
  const at::Tensor& weight() const { return weight_; }

 private:
  at::Tensor weight_, bias_;  // bias_ is undefined without bias
};

/// x * rsqrt(mean(x^2) + eps) * weight, computed in fp32 (float64 if x is float64) and cast back to
/// x's dtype before the multiplication by weight, as in DeepseekV3RMSNorm in the Transformers
/// library.
class RmsNorm {
 public:
  RmsNorm() = default;
  /// Declares "<owner's prefix>.<name>.weight" with Role::norm, `size` elements and an initial
  /// value of 1.
  RmsNorm(Component& owner, const std::string& name, int64_t size, double eps);
  at::Tensor operator()(const at::Tensor& x) const;  // [..., size] -> same shape

 private:
  at::Tensor weight_;
  double eps_ = 0;
};

/// (x - mean(x)) * rsqrt(var(x) + eps) * weight + bias (Ba et al., arXiv 1607.06450).
class LayerNorm {
 public:
  LayerNorm() = default;
  /// Declares "<owner's prefix>.<name>.weight" and ".bias", of `size` elements with initial values
  /// of 1 and 0.
  LayerNorm(Component& owner, const std::string& name, int64_t size, double eps);
  at::Tensor operator()(const at::Tensor& x) const;  // [..., size] -> same shape

 private:
  at::Tensor weight_, bias_;
  double eps_ = 0;
};

}  // namespace dsv3
