// A tiny model of in-test layers, and the pieces that model tests share.
#pragma once

#include <map>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>

namespace dsv3::test {

/// One head whose scores fall with the distance in positions, so that wrong positions show.
class TinyAttention final : public Attention {
 public:
  explicit TinyAttention(const LayerContext& context)
      : Attention(context), width_(context.dims.hidden) {
    for (size_t i = 0; i < 4; ++i)
      projections_[i] = Linear(*this, std::string(1, "qkvo"[i]), width_, width_);
  }
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    const at::Tensor q = projections_[0](x);
    at::Tensor keys_values = at::cat({projections_[1](x), projections_[2](x)}, -1);
    at::Tensor key_positions = seq.positions;
    at::Tensor allowed;
    if (seq.cache) {
      keys_values = seq.cache->append(keys_values);
      key_positions = at::arange(keys_values.size(1), seq.positions.options()).unsqueeze(0);
    }
    const at::Tensor distance = seq.positions.unsqueeze(2) - key_positions.unsqueeze(1);
    allowed = seq.mask.defined() ? seq.mask.squeeze(1) : distance.ge(0);
    const at::Tensor k = keys_values.narrow(2, 0, width_),
                     v = keys_values.narrow(2, width_, width_);
    const at::Tensor scores =
        at::matmul(q, k.transpose(1, 2)) * 4 - distance.to(q.scalar_type()) * 0.3;
    return projections_[3](at::matmul(scores.masked_fill(~allowed, -1e9).softmax(-1), v));
  }
  double attention_flops(int64_t seq) const override { return 4.0 * double(seq * width_); }
  int64_t cache_values_per_token() const override { return 2 * width_; }
  int64_t saved_values_per_token(int64_t) const override { return 4 * width_; }

 private:
  int64_t width_;
  Linear projections_[4];
};

/// relu^2 with a side loss per sequence and counts of active neurons, as a mixture of experts has.
class TinyFeedForward final : public FeedForward {
 public:
  explicit TinyFeedForward(const LayerContext& context)
      : FeedForward(context), width_(context.dims.hidden) {
    up_ = Linear(*this, "up", width_, 2 * width_, {.active = 0.5});
    down_ = Linear(*this, "down", 2 * width_, width_);
    counts_ = at::zeros({2 * width_}, at::kLong);
  }
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    const at::Tensor hidden = up_(x).relu();
    if (seq.training && !seq.recompute)
      counts_.add_(hidden.detach().gt(0).sum(at::IntArrayRef{0, 1}));
    at::Tensor y = down_(hidden.square());
    if (!seq.training) return y;
    const at::Tensor aux = hidden.square().mean({1, 2}).sum() * 50;  // a mean a sequence, summed
    return add_loss(y, aux, seq.aux_scale);
  }
  at::Tensor step_counts() override { return counts_; }
  int64_t saved_values_per_token() const override { return 4 * width_; }

 private:
  int64_t width_;
  Linear up_, down_;
  at::Tensor counts_;
};

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
  experiment.init.std = 0.3;  // so that every part of the model matters
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

/// Rows of several documents and padding, [4, 9].
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

/// Largest difference between two sets, relative to each tensor's largest entry.
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
