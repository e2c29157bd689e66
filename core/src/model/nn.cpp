#include <ATen/ATen.h>

#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>

namespace dsv3 {

Linear::Linear(Component& owner, const std::string& name, int64_t in, int64_t out, ParamSpec spec)
    : weight_(owner.parameter(name + ".weight", {out, in}, spec)) {}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  return at::linear(x, weight_);
}

RmsNorm::RmsNorm(Component& owner, const std::string& name, int64_t size, double eps)
    : weight_(
          owner.parameter(name + ".weight", {size}, {.role = Role::norm, .init = Init::ones()})),
      eps_(eps) {}

at::Tensor RmsNorm::operator()(const at::Tensor& x) const {
  return rms_norm(x, weight_, eps_);
}

}  // namespace dsv3
