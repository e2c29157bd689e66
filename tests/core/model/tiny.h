// A tiny model with reference layers, and helpers for model tests.
#pragma once

#include <map>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>

#include "conformance/reference_layers.h"

namespace dsv3::test {

using TinyAttention = conformance::ReferenceAttention;
using TinyFeedForward = conformance::ReferenceFeedForward;

inline ModelFactory tiny_factory() {
  ModelFactory factory;
  factory.attention = [](const LayerContext& c) { return std::make_shared<TinyAttention>(c); };
  factory.feed_forward = [](const LayerContext& c) { return std::make_shared<TinyFeedForward>(c); };
  return factory;
}

constexpr int64_t tiny_vocab = 23;

inline Experiment tiny_experiment() {
  Experiment experiment;
  experiment.model.hidden = 12;
  experiment.model.layers = 2;
  experiment.train.sequence = 8;
  experiment.init.std = 0.3;  // large, so that every part of the model affects the loss
  experiment.mtp.depth = 2;
  experiment.mtp.weight = 0.4;
  return experiment;
}

inline std::unique_ptr<Model> tiny_model(const Experiment& experiment, uint64_t seed = 1,
                                         at::ScalarType dtype = at::kFloat) {
  auto model = std::make_unique<Model>(experiment, tiny_vocab, tiny_factory(), at::kCPU, dtype);
  model->initialise(seed);
  return model;
}

/// A batch with tokens [4, 9], several documents and padding.
inline Batch tiny_batch() {
  Batch batch;
  batch.tokens = at::arange(36, at::kLong).view({4, 9}).mul(7).add(3).remainder(tiny_vocab);
  batch.document_ids = at::zeros({4, 9}, at::kLong);
  batch.document_ids.narrow(0, 1, 1).narrow(1, 4, 5).fill_(1);
  batch.document_ids.narrow(0, 2, 1).narrow(1, 2, 3).fill_(2);
  batch.document_ids.narrow(0, 3, 1).narrow(1, 6, 3).fill_(-1);
  return batch;
}

inline LossScale scale_of(const Batch& batch, int64_t depth) {
  const std::vector<int64_t> counts = count_targets(batch, depth);
  LossScale scale;
  scale.main_targets = double(counts[0]);
  scale.mtp_targets.assign(counts.begin() + 1, counts.end());
  scale.sequences = batch.tokens.size(0);
  return scale;
}

using Named = std::map<std::string, at::Tensor>;

inline Named gradients(const Model& model) {
  Named result;
  for (const Parameter& parameter : model.store().parameters())
    result[parameter.name] = parameter.tensor.grad().defined() ? parameter.tensor.grad().clone()
                                                               : at::zeros_like(parameter.tensor);
  return result;
}

inline void clear_gradients(const Model& model) {
  for (const Parameter& parameter : model.store().parameters())
    parameter.tensor.mutable_grad() = at::Tensor();
}

inline Named values(const Model& model) {
  Named result;
  for (const Parameter& parameter : model.store().parameters())
    result[parameter.name] = parameter.tensor;
  return result;
}

/// Largest difference between two sets of tensors, relative to the largest value in each tensor.
inline double largest_difference(const Named& a, const Named& b) {
  double worst = 0;
  for (const auto& [name, tensor] : a) {
    const at::Tensor& other = b.at(name);
    const double size = std::max(other.abs().max().item<double>(), 1e-12);
    worst = std::max(worst, (tensor - other).abs().max().item<double>() / size);
  }
  return worst;
}

inline bool equal_bits(const Named& a, const Named& b) {
  for (const auto& [name, tensor] : a)
    if (!at::equal(tensor, b.at(name))) return false;
  return a.size() == b.size();
}

}  // namespace dsv3::test
