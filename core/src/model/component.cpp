#include <algorithm>
#include <array>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>

namespace dsv3 {
const char* role_name(Role role) {
  static constexpr std::array names{"matrix", "embedding", "head", "norm", "router", "bias"};
  const size_t index = size_t(role) - 1;
  if (index >= names.size()) throw Error("unknown parameter role " + std::to_string(int(role)));
  return names[index];
}

void ParameterStore::require_new(const std::string& name) {
  if (!names_.insert(name).second)
    throw Error("'" + name + "' is declared twice; parameters and buffers must have unique names",
                ExitCode::plugin);
}

at::Tensor ParameterStore::add(std::string name, at::IntArrayRef sizes, const ParamSpec& spec,
                               at::ScalarType dtype, at::Device device) {
  require_new(name);
  const int64_t rows = sizes.empty() ? 1 : c10::multiply_integers(sizes.slice(0, sizes.size() - 1));
  if (spec.matrices < 1 || rows % spec.matrices != 0)
    throw Error("'" + name + "' has " + std::to_string(rows) +
                    " rows, which cannot be divided into " + std::to_string(spec.matrices) +
                    " matrices of equal size",
                ExitCode::plugin);
  at::Tensor tensor = at::empty(
      sizes, at::TensorOptions().dtype(dtype).device(deferred_ ? at::Device(at::kMeta) : device));
  tensor.set_requires_grad(true);
  parameters_.push_back({std::move(name), tensor, spec});
  return tensor;
}

at::Tensor ParameterStore::add_buffer(std::string name, at::IntArrayRef sizes, at::ScalarType dtype,
                                      Init init, at::Device device) {
  require_new(name);
  if (init.kind == Init::Kind::normal)
    throw Error("buffer '" + name + "' must be initialised with a constant", ExitCode::plugin);
  const at::Tensor tensor =
      at::full(sizes, init.value, at::TensorOptions().dtype(dtype).device(device));
  buffers_.push_back({std::move(name), tensor});
  return tensor;
}

at::Tensor Component::parameter(const std::string& name, at::IntArrayRef sizes,
                                const ParamSpec& spec) {
  return context_.store->add(full_name(name), sizes, spec, context_.dtype, context_.device);
}

at::Tensor Component::buffer(const std::string& name, at::IntArrayRef sizes, at::ScalarType dtype,
                             Init init) {
  return context_.store->add_buffer(full_name(name), sizes, dtype, init, context_.device);
}

std::string Component::full_name(const std::string& name) const {
  return context_.prefix.empty() ? name : context_.prefix + "." + name;
}

Linear::Linear(Component& owner, const std::string& name, int64_t in, int64_t out, ParamSpec spec,
               bool bias)
    : weight_(owner.parameter(name + ".weight", {out, in}, spec)) {
  if (bias)
    bias_ = owner.parameter(name + ".bias", {out}, {.role = Role::bias, .init = Init::zeros()});
}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  return bias_.defined() ? at::linear(x, weight_, bias_) : at::linear(x, weight_);
}

RmsNorm::RmsNorm(Component& owner, const std::string& name, int64_t size, double eps)
    : weight_(
          owner.parameter(name + ".weight", {size}, {.role = Role::norm, .init = Init::ones()})),
      eps_(eps) {}

at::Tensor RmsNorm::operator()(const at::Tensor& x) const {
  return rms_norm(x, weight_, eps_);
}

LayerNorm::LayerNorm(Component& owner, const std::string& name, int64_t size, double eps)
    : weight_(
          owner.parameter(name + ".weight", {size}, {.role = Role::norm, .init = Init::ones()})),
      bias_(owner.parameter(name + ".bias", {size}, {.role = Role::bias, .init = Init::zeros()})),
      eps_(eps) {}

at::Tensor LayerNorm::operator()(const at::Tensor& x) const {
  return at::layer_norm(x, {x.size(-1)}, weight_, bias_, eps_);
}

}  // namespace dsv3
