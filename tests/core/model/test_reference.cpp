// Compares the training loss with a slow reference implementation that follows the definitions
// position by position.
#include <ATen/ATen.h>
#include <catch2/catch.hpp>
#include <torch/csrc/autograd/autograd.h>

#include "tiny.h"

namespace dsv3::test {
namespace {

class SlowModel {
 public:
  SlowModel(const Model& model, const Experiment& experiment)
      : model_(model), experiment_(experiment), named_(values(model)) {}

  /// Returns the sum of the main loss and the weighted MTP loss for one row with one document.
  at::Tensor loss(const at::Tensor& tokens, const LossScale& scale) {
    const int64_t length = tokens.size(0) - 1;
    Sequence seq;
    seq.training = true;
    seq.aux_scale = 1.0 / double(scale.sequences);
    seq.positions = at::arange(length, at::kLong).unsqueeze(0);
    const at::Tensor& table = named_.at("embedding.weight");
    at::Tensor x = table.index_select(0, tokens.narrow(0, 0, length)).unsqueeze(0);
    const int64_t layers = experiment_.model.layers;
    for (int64_t i = 0; i < layers; ++i) x = block(i, x, seq);
    at::Tensor normed = norm("final_norm", x);
    at::Tensor total = entropy(normed, tokens, 1) / scale.main_targets;
    for (int64_t k = 1; k <= experiment_.mtp.depth; ++k) {
      const std::string name = "layers." + std::to_string(layers + k - 1);
      const at::Tensor hidden = experiment_.mtp.input == "normed" ? normed : x;
      at::Tensor inputs = at::zeros({length}, at::kLong);
      for (int64_t i = 0; i < length; ++i)
        if (i + k <= length) inputs[i] = tokens[i + k];
      const at::Tensor e =
          norm(name + ".embedding_norm", table.index_select(0, inputs).unsqueeze(0));
      const at::Tensor h = norm(name + ".hidden_norm", hidden);
      const at::Tensor joined =
          experiment_.mtp.concat == "embedding_first" ? at::cat({e, h}, 2) : at::cat({h, e}, 2);
      x = at::matmul(joined, named_.at(name + ".projection.weight").t());
      x = block(layers + k - 1, x, seq);
      normed = norm(name + ".final_norm", x);
      const double divisor =
          experiment_.mtp.denominator == "own" ? scale.mtp_targets[k - 1] : scale.main_targets;
      const double weight = experiment_.mtp.weight / double(experiment_.mtp.depth);
      total = total + weight * entropy(normed, tokens, k + 1) / divisor;
    }
    return total;
  }

 private:
  at::Tensor norm(const std::string& name, const at::Tensor& x) {
    const at::Tensor mean = x.square().mean(-1, true) + experiment_.norm.eps;
    return x / mean.sqrt() * named_.at(name + ".weight");
  }

  at::Tensor block(int64_t layer, at::Tensor x, const Sequence& seq) {
    const std::string name = "layers." + std::to_string(layer) + ".";
    const std::string& position = experiment_.norm.place;
    at::Tensor y = position == "post" ? x : norm(name + "attention_norm", x);
    y = model_.attention()[layer]->forward(y, seq);
    x = x + (position == "pre" ? y : norm(name + "attention_post_norm", y));
    y = position == "post" ? x : norm(name + "feed_forward_norm", x);
    y = model_.feed_forward()[layer]->forward(y, seq);
    return x + (position == "pre" ? y : norm(name + "feed_forward_post_norm", y));
  }

  /// Returns the sum of -log p over all positions, where p is the probability of the token `ahead`
  /// positions later.
  at::Tensor entropy(const at::Tensor& x, const at::Tensor& tokens, int64_t ahead) {
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (int64_t i = 0; i + ahead < tokens.size(0); ++i) {
      const at::Tensor logits = at::mv(named_.at("head.weight"), x[0][i]);
      sum = sum - logits.log_softmax(0)[tokens[i + ahead].item<int64_t>()];
    }
    return sum;
  }

  const Model& model_;
  const Experiment& experiment_;
  Named named_;
};

TEST_CASE("the training loss and its gradients match the reference implementation") {
  Experiment experiment = tiny_experiment();
  experiment.norm.place = GENERATE("pre", "post", "both");
  experiment.mtp.input = GENERATE("normed", "raw");
  experiment.mtp.concat = GENERATE("embedding_first", "hidden_first");
  experiment.mtp.denominator = GENERATE("main", "own");
  experiment.mtp.depth = GENERATE(1, 3);
  const auto model = tiny_model(experiment, 1, at::kDouble);  // avoids rounding errors
  Batch batch;
  batch.tokens = tiny_batch().tokens.narrow(0, 0, 3);
  const LossScale scale = scale_of(batch, experiment.mtp.depth);

  const at::Tensor actual = model->loss(batch, scale).total;
  torch::autograd::backward({actual}, {});
  const Named actual_gradients = gradients(*model);
  clear_gradients(*model);

  SlowModel slow(*model, experiment);
  at::Tensor expected = at::zeros({}, at::kDouble);
  for (int64_t b = 0; b < 3; ++b) expected = expected + slow.loss(batch.tokens[b], scale);
  torch::autograd::backward({expected}, {});
  CHECK(actual.item<double>() == Approx(expected.item<double>()).epsilon(1e-12));
  CHECK(largest_difference(actual_gradients, gradients(*model)) < 1e-9);
}

}  // namespace
}  // namespace dsv3::test
