#include "conformance/layers.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>

#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>

#include "conformance/fake_device.h"
#include "ranks/recorded_metrics.h"

namespace dsv3::conformance {
namespace {

// A plain rotary position encoding, so that layer checks need no position plugin.
class Rotary final : public Position {
 public:
  explicit Rotary(int64_t rotary_dim) : angles_(rotary_frequencies(rotary_dim, 10000), 1, 64) {}
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    const auto [cos, sin] = angles_.at(positions, q.scalar_type());
    return {dsv3::rotate(q, cos, sin, true), dsv3::rotate(k, cos, sin, true)};
  }

 private:
  Angles angles_;
};

uint64_t seed_of(const std::string& name) {
  uint64_t hash = 1469598103934665603u;  // FNV-1a
  for (const unsigned char c : name) hash = (hash ^ c) * 1099511628211u;
  return hash >> 1;
}

void require_sound(const Parameter& parameter, const LayerContext& context) {
  const ParamSpec& spec = parameter.spec;
  const at::Tensor& tensor = parameter.tensor;
  const std::string name = "parameter " + parameter.name;
  require(parameter.name.starts_with(context.prefix + "."), name, " does not have the prefix ",
          context.prefix);
  require(tensor.numel() > 0, name, " is empty");
  require(spec.keep_fp32 || tensor.scalar_type() == context.dtype, name,
          " does not have the context's dtype");
  require(spec.active > 0 && spec.active <= 1, name, " declares an active fraction of ",
          spec.active, ", which must be above 0 and at most 1");
  require(spec.matrices >= 1, name, " declares ", spec.matrices, " matrices");
  if (spec.role != Role::matrix) return;
  require(tensor.dim() >= 2, name, " has role matrix, but its shape is ", tensor.sizes());
  require(tensor.numel() / tensor.size(-1) % spec.matrices == 0, name, " with sizes ",
          tensor.sizes(), " cannot be split into ", spec.matrices, " matrices of equal size");
}

void require_comparable(const at::Tensor& actual, const at::Tensor& expected,
                        const std::string& what) {
  require(actual.defined(), what, " is an undefined tensor");
  require(actual.sizes() == expected.sizes(), what, " has sizes ", actual.sizes(), ", expected ",
          expected.sizes());
  require_finite(actual, what);
  require_finite(expected, "the expected value of " + what);
}

}  // namespace

at::Tensor normal(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble).to(dtype);
}

LayerContext layer_context(at::ScalarType dtype, at::Device device) {
  return {.dims = {kHidden, 16, 2, 1e-6},
          .layer = 1,
          .prefix = "layers.1.checked",
          .dtype = dtype,
          .device = device,
          .rank_group = {},
          .store = std::make_shared<ParameterStore>(),
          .make_position = [](int64_t dim) { return std::make_shared<Rotary>(dim); }};
}

void fill(const ParameterStore& store) {
  const at::NoGradGuard no_grad;
  for (const Parameter& parameter : store.parameters()) {
    const bool norm = parameter.spec.role == Role::norm;
    const at::Tensor values = normal(parameter.tensor.sizes(), seed_of(parameter.name)) *
                              (norm ? 0.2 : 1 / std::sqrt(double(parameter.tensor.size(-1))));
    parameter.tensor.copy_(norm ? values + 1 : values);
  }
}

Sequence one_document(int64_t batch, int64_t length, bool training) {
  return {.positions = at::arange(length).expand({batch, length}).contiguous(),
          .document_ids = {},
          .packing = nullptr,
          .training = training,
          .aux_scale = 1.0 / double(batch)};
}

Sequence packed(int64_t batch, int64_t length, const std::vector<int64_t>& starts) {
  at::Tensor ids = at::zeros({batch, length}, at::kLong);
  for (const int64_t start : starts) ids.narrow(1, start, length - start).add_(1);
  Sequence seq = one_document(batch, length);
  seq.document_ids = ids;
  seq.positions = positions_of(ids);
  seq.packing = packing_of(ids);
  return seq;
}

double largest(const at::Tensor& tensor) {
  return tensor.abs().max().item<double>();
}

double difference(const at::Tensor& actual, const at::Tensor& expected, double smallest) {
  if (!actual.defined() || actual.sizes() != expected.sizes()) return HUGE_VAL;
  const at::Tensor a = actual.detach().to(at::kCPU, at::kDouble),
                   e = expected.detach().to(at::kCPU, at::kDouble);
  if (a.numel() == 0) return 0;
  const double worst = largest(a - e) / std::max(largest(e), smallest);
  return std::isfinite(worst) ? worst : HUGE_VAL;
}

void require_finite(const at::Tensor& tensor, const std::string& what) {
  require(at::isfinite(tensor).all().item<bool>(), what, kNotFinite,
          tensor.is_cuda() ? nan_hint() : "");
}

void require_like(const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType dtype,
                  const std::string& what, at::Device device) {
  require(tensor.defined(), what, " is an undefined tensor");
  require(tensor.sizes() == sizes, what, " has sizes ", tensor.sizes(), ", expected ", sizes);
  require(tensor.scalar_type() == dtype, what, " has dtype ", tensor.scalar_type(), ", expected ",
          dtype);
  require(tensor.device() == device, what, " is on device ", tensor.device(), ", expected ",
          device);
  require_finite(tensor, what);
}

void require_equal(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  if (actual.defined() && actual.sizes() == expected.sizes() && at::equal(actual, expected)) return;
  require_comparable(actual, expected, what);
  throw Violation(c10::str(what, " differs by ", difference(actual, expected),
                           " (relative to the largest value); it must be bit-identical"));
}

void require_close(const at::Tensor& actual, const at::Tensor& expected, double bound,
                   const std::string& what) {
  require_comparable(actual, expected, what);
  const double worst = difference(actual, expected);
  require(worst <= bound, what, " differs by ", worst, " (relative to the largest value); at most ",
          bound, " is allowed");
}

std::vector<at::Tensor> gradients(const at::Tensor& y, const NamedTensors& inputs) {
  require(y.requires_grad(), "the result does not require grad, so no gradients can be computed");
  std::vector<at::Tensor> tensors;
  for (const auto& [name, tensor] : inputs) tensors.push_back(tensor);
  const at::Tensor direction = normal(y.sizes(), 99, y.scalar_type()).to(y.device());
  std::vector<at::Tensor> grads = [&] {
    const WaitRecorder recorder("backward");
    return torch::autograd::grad({y}, tensors, {direction}, std::nullopt, false, true);
  }();
  for (size_t i = 0; i < grads.size(); ++i)
    if (!grads[i].defined()) grads[i] = at::zeros_like(tensors[i]);
  return grads;
}

void require_gradients(const std::function<at::Tensor()>& function, const NamedTensors& inputs) {
  constexpr int64_t kSamples = 6;
  constexpr double kStep = 1e-6, kBound = 1e-5;
  const at::Tensor y = function();
  const at::Tensor direction = normal(y.sizes(), 99);
  const std::vector<at::Tensor> analytic = gradients(y, inputs);
  double scale = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    require_finite(analytic[i], "the gradient of " + inputs[i].first);
    scale = std::max(scale, largest(analytic[i]));
  }
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string name = "the gradient of " + inputs[i].first;
    require(largest(analytic[i]) > 0, name, " is all zero");
    const at::Tensor values = inputs[i].second.detach().view({-1});
    const int64_t stride = std::max<int64_t>(1, values.numel() / kSamples);
    for (int64_t j = stride / 2; j < values.numel(); j += stride) {
      const double original = values[j].item<double>();
      const auto at_value = [&](double value) {
        values[j] = value;
        return (function() * direction).sum().item<double>();
      };
      const double expected =
          (at_value(original + kStep) - at_value(original - kStep)) / (2 * kStep);
      values[j] = original;
      const double actual = analytic[i].reshape({-1})[j].item<double>();
      require(std::abs(actual - expected) <= kBound * std::max(scale * 0.1, std::abs(expected)),
              name, " at element ", j, " is ", actual, ", but central differences give ", expected);
    }
  }
}

void require_declared_leaves(const at::Tensor& y, const NamedTensors& inputs) {
  std::set<torch::autograd::Node*> visited;
  std::vector<torch::autograd::Node*> open{y.grad_fn().get()};
  while (!open.empty()) {
    torch::autograd::Node* node = open.back();
    open.pop_back();
    if (!node || !visited.insert(node).second) continue;
    for (const torch::autograd::Edge& edge : node->next_edges())
      open.push_back(edge.function.get());
    const auto* leaf = dynamic_cast<const torch::autograd::AccumulateGrad*>(node);
    if (!leaf) continue;
    const bool declared = std::ranges::any_of(
        inputs, [&](const auto& input) { return input.second.is_same(leaf->variable); });
    require(declared, "the result depends on a tensor of sizes ", leaf->variable.sizes(),
            " that requires gradients but is not a declared parameter, so it would be neither "
            "trained nor saved; create it with parameter()");
  }
}

void require_described_metrics(const Subject& subject,
                               const std::function<void(const Metrics&)>& body) {
  const auto sink = std::make_shared<MetricSink>();
  sink->open();
  body(Metrics(sink));
  const auto is_described = [&](const std::string& name) {
    const size_t slash = name.rfind('/');
    const std::string last = name.substr(slash + 1);
    const bool of_layer = !last.empty() && last.find_first_not_of("0123456789") == last.npos;
    const std::string described = of_layer ? name.substr(0, slash) + "/<layer>" : name;
    return name == "attention/max_logit" ||  // dsv3::attend records it
           std::ranges::any_of(subject.component.schema->metrics,
                               [&](const MetricSpec& metric) { return metric.name == described; });
  };
  for (const std::string& name : take_metrics(*sink, {}, at::kCPU).names)
    require(is_described(name), "it records metric '", name,
            "', which its options do not describe; add s.metric(name, unit, description) to "
            "describe()");
}

void require_declarations(const std::function<void(const LayerContext&)>& build) {
  const LayerContext real = layer_context(at::kFloat), meta = layer_context(at::kFloat, at::kMeta);
  build(real);
  build(meta);
  std::map<std::string, Parameter> on_meta;
  for (const Parameter& parameter : meta.store->parameters())
    on_meta.emplace(parameter.name, parameter);
  for (const Parameter& parameter : real.store->parameters()) {
    require_sound(parameter, real);
    const auto found = on_meta.find(parameter.name);
    require(found != on_meta.end(), "parameter ", parameter.name,
            " is not declared on the meta device");
    const at::Tensor& tensor = found->second.tensor;
    const ParamSpec &a = found->second.spec, &b = parameter.spec;
    require(tensor.is_meta(), "parameter ", parameter.name, " is not created on the meta device");
    require(tensor.sizes() == parameter.tensor.sizes() && a.role == b.role &&
                a.matrices == b.matrices && a.active == b.active && a.keep_fp32 == b.keep_fp32,
            "parameter ", parameter.name, " is declared differently on the meta device");
  }
  require(on_meta.size() == real.store->parameters().size(),
          "more parameters are declared on the meta device than on the CPU");
  require(meta.store->buffers().size() == real.store->buffers().size(),
          "different numbers of buffers are declared on the meta device and on the CPU");
}

}  // namespace dsv3::conformance
