// What the checks of layers share: contexts, first values, made inputs, comparisons.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/position.h>

#include "conformance/suite.h"

namespace dsv3::conformance {

constexpr int64_t kHidden = 32, kLength = 12;

/// Reproducible normal values that leave torch's global generator alone.
at::Tensor normal(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype = at::kDouble);

/// Layer 1 of 2 with plain rotary positions; parameters go to a store of its own.
LayerContext layer_context(at::ScalarType dtype, at::Device device = at::kCPU);

/// First values around 0 (norms around 1), the same for equal names and shapes.
void fill(const ParameterStore& store);

/// Rows of one document each.
Sequence one_document(int64_t batch, int64_t length);
/// Rows packed from documents that start at `starts` (the first is 0).
Sequence packed(int64_t batch, int64_t length, const std::vector<int64_t>& starts);

/// Largest difference relative to the largest value of `expected`; infinity when shapes differ or
/// a value is not finite.
double difference(const at::Tensor& actual, const at::Tensor& expected);

/// Throws Violation unless `tensor` is on the CPU, finite, and of these sizes and this dtype.
void require_like(const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType dtype,
                  const std::string& what);

/// Throws Violation unless all bits are equal.
void require_equal(const at::Tensor& actual, const at::Tensor& expected, const std::string& what);
void require_close(const at::Tensor& actual, const at::Tensor& expected, double bound,
                   const std::string& what);

/// d sum(y * fixed values) / d inputs; zeros where y does not depend on an input.
std::vector<at::Tensor> gradients(const at::Tensor& y, const std::vector<at::Tensor>& inputs);

/// Throws Violation unless autograd agrees with central differences on some elements of each of
/// the float64 `inputs`.
void require_gradients(const std::function<at::Tensor()>& function,
                       const std::vector<std::pair<std::string, at::Tensor>>& inputs);

/// Bytes of tensors that `body`'s result keeps alive, beyond the result itself.
int64_t bytes_kept(const std::function<at::Tensor()>& body);

/// FLOPs of matrix products in `body`, 2 a multiply-add.
double product_flops(const std::function<void()>& body);

/// Throws Violation when what a component declared is not sound, or differs on the meta device.
void require_declarations(const std::function<void(const LayerContext&)>& build);

/// A layer of either kind with its store.
template <class Layer>
struct Built {
  LayerContext context;
  std::shared_ptr<Layer> layer;
  at::Tensor operator()(const at::Tensor& x, const Sequence& seq) const {
    return layer->forward(x, seq);
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() const {
    std::vector<std::pair<std::string, at::Tensor>> all;
    for (const Parameter& each : context.store->parameters())
      all.emplace_back(each.name, each.tensor);
    return all;
  }
};
template <class Layer>
Built<Layer> build(const Subject& subject, at::ScalarType dtype) {
  Built<Layer> built{layer_context(dtype), nullptr};
  built.layer = make<Layer>(subject, built.context);
  fill(*built.context.store);
  return built;
}

// The checks that attention and feed-forward have in common.
template <class Layer>
void check_shapes(const Subject& subject) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const Built<Layer> layer = build<Layer>(subject, dtype);
    for (const auto& [batch, length] : {std::pair<int64_t, int64_t>{2, kLength}, {1, 1}, {3, 16}})
      require_like(layer(normal({batch, length, kHidden}, 7, dtype), one_document(batch, length)),
                   {batch, length, kHidden}, dtype, "forward's result");
  }
}

template <class Layer>
void check_declarations(const Subject& subject) {
  require_declarations([&](const LayerContext& context) { make<Layer>(subject, context); });
}

template <class Layer>
void check_determinism(const Subject& subject) {
  const auto run = [&] {
    const Built<Layer> layer = build<Layer>(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 8, at::kFloat).requires_grad_();
    const at::Tensor y = layer(x, one_document(2, kLength));
    std::vector<at::Tensor> all{x};
    for (const auto& [name, tensor] : layer.parameters()) all.push_back(tensor);
    all = gradients(y, all);
    all.push_back(y.detach());
    return all;
  };
  const auto first = run(), second = run();
  for (size_t i = 0; i < first.size(); ++i)
    require_equal(second[i], first[i], "the second of two equal layers");
}

template <class Layer>
void check_gradients(const Subject& subject) {
  const Built<Layer> layer = build<Layer>(subject, at::kDouble);
  const at::Tensor x = normal({1, 6, kHidden}, 9).requires_grad_();
  Sequence seq = one_document(1, 6);
  seq.aux_scale = 0;  // injected gradients are no part of the result's value
  auto inputs = layer.parameters();
  inputs.emplace_back("the input", x);
  require_gradients([&] { return layer(x, seq); }, inputs);
}

template <class Layer>
void check_recompute(const Subject& subject) {
  const Built<Layer> layer = build<Layer>(subject, at::kFloat);
  const at::Tensor x = normal({2, kLength, kHidden}, 10, at::kFloat);
  Sequence seq = packed(2, kLength, {0, 5});
  const at::Tensor first = layer(x, seq).detach();
  seq.recompute = true;
  require_equal(layer(x, seq).detach(), first, "the forward of a recomputed block");
}

template <class Layer>
void check_memory(const Subject& subject) {
  const Built<Layer> layer = build<Layer>(subject, at::kFloat);
  require_steady_memory([&] {
    const at::Tensor x = normal({2, kLength, kHidden}, 11, at::kFloat).requires_grad_();
    std::vector<at::Tensor> all{x};
    for (const auto& [name, tensor] : layer.parameters()) all.push_back(tensor);
    gradients(layer(x, one_document(2, kLength)), all);
  });
}

/// Inputs are left alone: a component may hold on to nothing it did not make.
template <class Layer>
void check_inputs(const Subject& subject) {
  const Built<Layer> layer = build<Layer>(subject, at::kFloat);
  const at::Tensor x = normal({2, kLength, kHidden}, 12, at::kFloat), was = x.clone();
  std::vector<at::Tensor> values;
  for (const auto& [name, tensor] : layer.parameters()) values.push_back(tensor.detach().clone());
  layer(x, one_document(2, kLength));
  require(x.use_count() == 1, "it keeps its input when the result is gone");
  require_equal(x, was, "the input after forward");
  size_t i = 0;
  for (const auto& [name, tensor] : layer.parameters())
    require_equal(tensor.detach(), values[i++], "parameter " + name + " after forward");
}

}  // namespace dsv3::conformance
