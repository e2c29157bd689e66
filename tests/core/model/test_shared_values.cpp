// Tests values that layers pass to later layers, and dropout, through recomputation and
// micro-batches.
#include <catch2/catch.hpp>

#include <dsv3/sdk/random.h>

#include "tiny.h"

namespace dsv3::test {
namespace {

/// Value residual learning (Zhou et al., arXiv 2410.17897): layers after the first add the first
/// layer's values to their own. Also counts the shared values of each layer.
class ResidualAttention final : public Attention {
 public:
  explicit ResidualAttention(const LayerContext& context)
      : Attention(context), width_(context.dims.hidden) {
    for (const char* name : {"q", "k", "v"}) layers_.emplace_back(*this, name, width_, width_);
  }
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    at::Tensor v = layers_[2](x);
    if (const at::Tensor first = seq.shared->find("values"); first.defined())
      v = v + first;
    else
      seq.shared->set("values", v);
    const auto head = [](const at::Tensor& t) { return t.unsqueeze(2); };
    return attend(head(layers_[0](x)), head(layers_[1](x)), head(v), seq).squeeze(2);
  }
  int64_t cache_values_per_token() const override { return 2 * width_; }

 private:
  int64_t width_;
  std::vector<Linear> layers_;
};

class DropoutFeedForward final : public FeedForward {
 public:
  explicit DropoutFeedForward(const LayerContext& context)
      : FeedForward(context), layer_(*this, "w", context.dims.hidden, context.dims.hidden) {}
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    return dropout(layer_(x), 0.3, seq);
  }

 private:
  Linear layer_;
};

ModelFactory factory() {
  ModelFactory factory;
  factory.attention = [](const LayerContext& c) { return std::make_shared<ResidualAttention>(c); };
  factory.feed_forward = [](const LayerContext& c) {
    return std::make_shared<DropoutFeedForward>(c);
  };
  return factory;
}

std::unique_ptr<Model> make_model(const std::string& recompute) {
  Experiment experiment = tiny_experiment();
  experiment.model.layers = 3;
  experiment.model.recompute = recompute;
  auto model = std::make_unique<Model>(experiment, tiny_vocab, factory(), at::kCPU, at::kDouble);
  model->initialise(1);
  return model;
}

Batch rows(const Batch& batch, int64_t first, int64_t count) {
  return {batch.tokens.narrow(0, first, count), batch.document_ids.narrow(0, first, count)};
}

/// Adds the gradients of `batch`, split into micro-batches of `micro` rows, and returns the loss.
double train(Model& model, int64_t micro, int64_t step = 1) {
  const Batch batch = tiny_batch();
  const LossScale scale = scale_of(batch, model.mtp_depth());
  double loss = 0;
  for (int64_t row = 0; row < batch.tokens.size(0); row += micro) {
    const PassContext pass{.key = {.seed = 5, .step = step, .first_row = row}};
    const LossParts losses = model.loss(rows(batch, row, micro), scale, pass);
    torch::autograd::backward({losses.total}, {});
    loss += losses.total.item<double>();
  }
  return loss;
}

}  // namespace

TEST_CASE("shared values and dropout are the same when a block is recomputed") {
  const auto saved = make_model("none"), recomputed = make_model("full");
  CHECK(train(*saved, 4) == train(*recomputed, 4));
  CHECK(equal_bits(gradients(*recomputed), gradients(*saved)));
}

TEST_CASE("dropout does not depend on the micro-batch size") {
  const auto whole = make_model("none"), split = make_model("full");
  const double loss = train(*whole, 4);
  CHECK(train(*split, 1) == Approx(loss).epsilon(1e-13));
  CHECK(largest_difference(gradients(*split), gradients(*whole)) < 1e-11);
}

TEST_CASE("dropout draws other numbers in every step") {
  const auto model = make_model("none");
  CHECK(train(*model, 4, 1) != train(*model, 4, 2));
  CHECK(train(*model, 4, 2) == train(*model, 4, 2));
}

TEST_CASE("gradients reach a shared value's layer from all later layers") {
  const std::string recompute = GENERATE("none", "full");
  const auto model = make_model(recompute);
  train(*model, 4);
  const Named grads = gradients(*model);
  const at::NoGradGuard no_grad;
  for (const Parameter& parameter : model->store().parameters()) {
    if (!parameter.name.ends_with("attention.v.weight")) continue;
    const auto loss_at = [&](double change) {
      parameter.tensor[3][5] += change;
      const Batch batch = tiny_batch();
      const double loss = model
                              ->loss(batch, scale_of(batch, model->mtp_depth()),
                                     {.key = {.seed = 5, .step = 1, .first_row = 0}})
                              .total.item<double>();
      parameter.tensor[3][5] -= change;
      return loss;
    };
    const double slope = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6;
    CAPTURE(parameter.name);
    CHECK(grads.at(parameter.name)[3][5].item<double>() ==
          Approx(slope).epsilon(1e-5).margin(1e-8));
  }
}

}  // namespace dsv3::test
