// Tests the layers that most components use: Linear with a bias and LayerNorm.
#include <catch2/catch.hpp>

#include <dsv3/sdk/nn.h>

#include "layers.h"

using test::difference;
using test::gradients;
using test::normal;

namespace {

// A component that only declares parameters.
struct Owner final : dsv3::Component {
  explicit Owner(const dsv3::LayerContext& context) : Component(context) {}
};

const dsv3::Parameter& declared(const dsv3::LayerContext& context, const std::string& name) {
  for (const dsv3::Parameter& parameter : context.store->parameters())
    if (parameter.name == name) return parameter;
  throw std::logic_error("no parameter " + name);
}

}  // namespace

TEST_CASE("Linear adds its bias") {
  const dsv3::LayerContext context = test::context(6);
  Owner owner(context);
  const dsv3::Linear linear(owner, "up", 6, 4, {}, true);
  const dsv3::Linear plain(owner, "down", 6, 4);
  CHECK(context.store->parameters().size() == 3);
  const dsv3::Parameter& weight = declared(context, "layer.up.weight");
  const dsv3::Parameter& bias = declared(context, "layer.up.bias");
  CHECK(bias.spec.role == dsv3::Role::bias);
  CHECK(bias.spec.init.value == 0);
  CHECK(bias.tensor.sizes() == at::IntArrayRef{4});
  test::fill(*context.store);
  const at::Tensor x = normal({2, 3, 6}, 1).requires_grad_();
  const at::Tensor y = linear(x);
  const at::Tensor expected =
      (x.unsqueeze(2) * weight.tensor).sum(3) + bias.tensor;  // sum_j W_ij x_j + b_i
  CHECK(difference(y, expected) < 1e-12);
  const std::vector<at::Tensor> inputs{x, weight.tensor, bias.tensor};
  const auto actual = gradients(y, inputs), wanted = gradients(expected, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) CHECK(difference(actual[i], wanted[i]) < 1e-12);
}

TEST_CASE("LayerNorm normalises mean and variance") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const dsv3::LayerContext context = test::context(24, dtype);
  Owner owner(context);
  const double eps = 0.1;  // large, so that ignoring eps would fail the test
  const dsv3::LayerNorm norm(owner, "norm", 24, eps);
  CHECK(declared(context, "layer.norm.weight").spec.role == dsv3::Role::norm);
  CHECK(declared(context, "layer.norm.weight").spec.init.value == 1);
  CHECK(declared(context, "layer.norm.bias").spec.role == dsv3::Role::bias);
  CHECK(declared(context, "layer.norm.bias").spec.init.value == 0);
  test::fill(*context.store);
  const at::Tensor x = normal({2, 5, 24}, 1).add(0.5).to(dtype).requires_grad_();
  std::vector<at::Tensor> inputs{x, test::parameter(*context.store, "layer.norm.weight"),
                                 test::parameter(*context.store, "layer.norm.bias")};
  std::vector<at::Tensor> wide;
  for (const at::Tensor& input : inputs)
    wide.push_back(input.detach().to(at::kDouble).requires_grad_());
  const at::Tensor centered = wide[0] - wide[0].mean(-1, true);
  const at::Tensor expected =
      centered / (centered.square().mean(-1, true) + eps).sqrt() * wide[1] + wide[2];
  const at::Tensor y = norm(x);
  CHECK(y.scalar_type() == dtype);
  const double bound = dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 2e-6 : 2e-2;
  CHECK(difference(y, expected) < bound);
  CHECK(at::equal(y, at::layer_norm(x, {24}, inputs[1], inputs[2], eps)));
  const auto actual = gradients(y, inputs), wanted = gradients(expected, wide);
  for (size_t i = 0; i < inputs.size(); ++i) CHECK(difference(actual[i], wanted[i]) < bound);
}
