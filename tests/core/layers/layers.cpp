#include "layers.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/plugin.h>

// Includes the plugins' sources, with their registration functions renamed to avoid name clashes.
#define dsv3_register_plugin register_mha
#include "../../../plugins/attention/mha/mha.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_mla
#include "../../../plugins/attention/mla/mla.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_moe
#include "../../../plugins/feed_forward/moe/dispatch.cpp"
#include "../../../plugins/feed_forward/moe/moe.cpp"
#include "../../../plugins/feed_forward/moe/routing.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_swiglu
#include "../../../plugins/feed_forward/swiglu/swiglu.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_none
#include "../../../plugins/position/none/none.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_rope
#include "../../../plugins/position/rope/rope.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_yarn
#include "../../../plugins/position/yarn/yarn.cpp"
#undef dsv3_register_plugin

namespace test {
namespace {

const dsv3::Registration& registration(const std::string& name) {
  static const dsv3::Registrar all = [] {
    dsv3::Registrar registrar;
    for (auto* add : {register_mha, register_mla, register_moe, register_swiglu, register_none,
                      register_rope, register_yarn})
      add(registrar);
    return registrar;
  }();
  for (const dsv3::Registration& registration : all.registrations())
    if (registration.name == name) return registration;
  throw std::logic_error("unknown component " + name);
}

// Rejects unknown keys. Otherwise, a test with a misspelled key would silently use the default.
const OptionValues& known(const dsv3::Registration& component, const OptionValues& values) {
  for (const auto& [key, value] : values)
    if (!component.schema->find(key))
      throw std::logic_error(component.name + " has no option " + key);
  return values;
}

template <class Base, class Context>
std::shared_ptr<Base> make(const std::string& name, const OptionValues& values,
                           const Context& context) {
  const dsv3::Registration& component = registration(name);
  return dsv3::construct<Base>(component, known(component, values), context);
}

}  // namespace

std::shared_ptr<dsv3::Position> make_position(const std::string& name, const OptionValues& values,
                                              int64_t rotary_dim, int64_t sequence) {
  return make<dsv3::Position>(name, values, dsv3::PositionContext{rotary_dim, sequence});
}

std::shared_ptr<dsv3::Attention> make_attention(const std::string& name, const OptionValues& values,
                                                const dsv3::LayerContext& context) {
  return make<dsv3::Attention>(name, values, context);
}

std::shared_ptr<dsv3::FeedForward> make_feed_forward(const std::string& name,
                                                     const OptionValues& values,
                                                     const dsv3::LayerContext& context) {
  return make<dsv3::FeedForward>(name, values, context);
}

std::string option_conflict(const std::string& name, const OptionValues& values) {
  if (name != "moe") throw std::logic_error("option_conflict supports only moe");
  const dsv3::Registration& component = registration(name);
  const auto options =
      dsv3::options_from<Moe::Options>(*component.schema, known(component, values));
  for (const auto& check : component.schema->checks)
    if (std::string error = check(&options); !error.empty()) return error;
  return "";
}

dsv3::LayerContext context(int64_t hidden, at::ScalarType dtype, at::Device device) {
  dsv3::LayerContext context;
  context.dims = {hidden, 16, 2, 1e-6};
  context.prefix = "layer";
  context.dtype = dtype;
  context.device = device;
  context.store = std::make_shared<dsv3::ParameterStore>();
  context.make_position = [](int64_t rotary_dim) { return make_position("rope", {}, rotary_dim); };
  return context;
}

void fill(dsv3::ParameterStore& store, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (const dsv3::Parameter& parameter : store.parameters()) {
    const bool norm = parameter.spec.role == dsv3::Role::norm;
    const double fan_in = static_cast<double>(parameter.tensor.size(-1));
    at::Tensor values =
        normal(parameter.tensor.sizes(), ++seed) * (norm ? 0.2 : 1 / std::sqrt(fan_in));
    parameter.tensor.copy_(norm ? values + 1 : values);
  }
}

at::Tensor parameter(const dsv3::ParameterStore& store, const std::string& name) {
  for (const dsv3::Parameter& parameter : store.parameters())
    if (parameter.name == name) return parameter.tensor;
  throw std::logic_error("no parameter " + name);
}

at::Tensor buffer(const dsv3::ParameterStore& store, const std::string& name) {
  for (const dsv3::Buffer& buffer : store.buffers())
    if (buffer.name == name) return buffer.tensor;
  throw std::logic_error("no buffer " + name);
}

at::Tensor normal(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(sizes, generator, at::kDouble).to(dtype);
}

dsv3::Sequence sequence(int64_t batch, int64_t length) {
  dsv3::Sequence seq;
  seq.positions = at::arange(length).expand({batch, length}).contiguous();
  seq.training = true;
  seq.aux_scale = 1.0 / static_cast<double>(batch);
  return seq;
}

double difference(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) throw std::logic_error("shapes differ");
  const at::Tensor a = actual.detach().to(at::kDouble), e = expected.detach().to(at::kDouble);
  return ((a - e).abs().max() / e.abs().max().clamp_min(1e-30)).item<double>();
}

std::vector<at::Tensor> gradients(const at::Tensor& y, const std::vector<at::Tensor>& inputs,
                                  const at::Tensor& direction) {
  return torch::autograd::grad(
      {y}, inputs, {direction.defined() ? direction : normal(y.sizes(), 99, y.scalar_type())});
}

double gradient_error(const std::function<at::Tensor()>& function,
                      const std::vector<at::Tensor>& inputs, int64_t samples) {
  const at::Tensor y = function();
  const at::Tensor direction = normal(y.sizes(), 99);
  const std::vector<at::Tensor> analytic = gradients(y, inputs, direction);
  const at::NoGradGuard no_grad;
  const double step = 1e-6;
  double worst = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    at::Tensor values = inputs[i].detach().view({-1});
    const double largest = analytic[i].abs().max().item<double>();
    const int64_t stride = std::max<int64_t>(1, values.numel() / samples);
    for (int64_t j = 0; j < values.numel(); j += stride) {
      const double original = values[j].item<double>();
      values[j] = original + step;
      const double above = (function() * direction).sum().item<double>();
      values[j] = original - step;
      const double below = (function() * direction).sum().item<double>();
      values[j] = original;
      const double expected = (above - below) / (2 * step);
      const double actual = analytic[i].reshape({-1})[j].item<double>();
      worst = std::max(worst, std::abs(actual - expected) / std::max(largest, 1e-30));
    }
  }
  return worst;
}

}  // namespace test
