// The two basic layers that nearly all components use: linear and RMSNorm.
#pragma once

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// y = x W^T, without bias. W is [out, in], as in torch.nn.Linear.
class Linear {
 public:
  Linear() = default;
  /// Declares "<owner's prefix>.<name>.weight".
  Linear(Component& owner, const std::string& name, int64_t in, int64_t out, ParamSpec spec = {});
  at::Tensor operator()(const at::Tensor& x) const;  // [..., in] -> [..., out]
  const at::Tensor& weight() const { return weight_; }

 private:
  at::Tensor weight_;
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

}  // namespace dsv3
