// Promises of feed-forward plugins.
#include <ATen/ATen.h>

#include "conformance/layers.h"
#include "conformance/model.h"

namespace dsv3::conformance {
namespace {

using Layer = Built<FeedForward>;

at::Tensor counts_of(const Layer& layer) {
  const at::Tensor counts = layer.layer->step_counts();
  return counts.defined() ? counts.clone() : counts;
}

// Kernels may group tokens differently, so a mixture's rounding may differ: 1e-6 of the largest
// value, not equal bits. A changed routing choice would show as far more.
void check_tokens(const Subject& subject) {
  const Layer layer = build<FeedForward>(subject, at::kFloat);
  const at::Tensor x = normal({2, kLength, kHidden}, 30, at::kFloat);
  const at::Tensor y = layer(x, one_document(2, kLength)).detach();
  at::Tensor other = x.clone();
  other[1].add_(normal({kLength, kHidden}, 31, at::kFloat));
  other[0].narrow(0, 0, 5).sub_(2);
  require_close(layer(other, one_document(2, kLength)).detach()[0].narrow(0, 5, kLength - 5),
                y[0].narrow(0, 5, kLength - 5), 1e-6, "with other tokens changed, an output");
  require_close(layer(x.narrow(0, 1, 1).narrow(1, 3, 1), one_document(1, 1)).detach(),
                y.narrow(0, 1, 1).narrow(1, 3, 1), 1e-6,
                "a token alone, against the token among others:");
}

void check_counts(const Subject& subject) {
  const Layer layer = build<FeedForward>(subject, at::kFloat);
  at::Tensor counts = layer.layer->step_counts();
  if (!counts.defined()) return;
  require(counts.scalar_type() == at::kLong, "step_counts() is not int64");
  require(counts.dim() == 1, "step_counts() is not of one dimension");
  require(counts.eq(0).all().item<bool>(), "step_counts() of a new layer is not zero");
  const at::Tensor x = normal({2, kLength, kHidden}, 32, at::kFloat);
  Sequence seq = one_document(2, kLength);
  layer(x, seq);
  const at::Tensor once = counts_of(layer);
  require(once.sum().item<int64_t>() > 0, "a training forward counts nothing");
  layer(x, seq);
  require(at::equal(counts_of(layer), once * 2),
          "step_counts() does not add up over micro-batches");
  seq.recompute = true;
  layer(x, seq);
  require(at::equal(counts_of(layer), once * 2), "the forward of a recomputed block counts again");
  seq.recompute = seq.training = false;
  layer(x, seq);
  require(at::equal(counts_of(layer), once * 2), "a forward of validation counts");
  layer.layer->step_counts().zero_();
  require(counts_of(layer).eq(0).all().item<bool>(),
          "step_counts() is a copy: zeroing it does not zero the layer's own counts");
  // Accumulation: the same rows one after another.
  seq = one_document(1, kLength);
  seq.aux_scale = 0.5;
  for (int64_t row = 0; row < 2; ++row) layer(x.narrow(0, row, 1), seq);
  require(at::equal(counts_of(layer), once),
          "two micro-batches of one row count differently from one of two rows");
}

void step_end(const Layer& layer, const at::Tensor& x, double progress) {
  layer(x, one_document(x.size(0), kLength));
  StepEnd end;
  end.counts = counts_of(layer);
  end.progress = progress;
  layer.layer->on_step_end(end);
  if (at::Tensor counts = layer.layer->step_counts(); counts.defined()) counts.zero_();
}

void check_state(const Subject& subject) {
  const Layer one = build<FeedForward>(subject, at::kFloat);
  const Layer other = build<FeedForward>(subject, at::kFloat);
  const at::Tensor x = normal({2, kLength, kHidden}, 33, at::kFloat);
  std::vector<at::Tensor> values;
  for (const auto& [name, tensor] : one.parameters()) values.push_back(tensor.detach().clone());
  const at::Tensor untouched = other(x, one_document(2, kLength)).detach();
  if (at::Tensor counts = other.layer->step_counts(); counts.defined()) counts.zero_();
  for (int step = 1; step <= 3; ++step) step_end(one, x, step / 10.0);
  require_equal(other(x, one_document(2, kLength)).detach(), untouched,
                "another layer's steps (state shared between layers?): a layer's output");
  if (at::Tensor counts = other.layer->step_counts(); counts.defined()) counts.zero_();
  size_t i = 0;
  for (const auto& [name, tensor] : one.parameters())
    require_equal(tensor.detach(), values[i++],
                  "on_step_end() may change buffers, not parameters: " + name);
  const auto& saved = one.context.store->buffers();
  for (size_t b = 0; b < saved.size(); ++b) {
    require(saved[b].tensor.sizes() == other.context.store->buffers()[b].tensor.sizes(),
            "buffer " + saved[b].name + " changed its shape");
    other.context.store->buffers()[b].tensor.copy_(saved[b].tensor);
  }
  for (int step = 4; step <= 5; ++step) {
    const at::Tensor fresh = normal({2, kLength, kHidden}, 34 + step, at::kFloat);
    require_equal(other(fresh, one_document(2, kLength)).detach(),
                  one(fresh, one_document(2, kLength)).detach(),
                  "a layer that was saved and loaded (parameters and buffers): its output");
    step_end(one, fresh, step / 10.0);
    step_end(other, fresh, step / 10.0);
  }
}

// Side losses are sums over rows times aux_scale, so gradients are a line in aux_scale.
void check_side_loss(const Subject& subject) {
  const Layer layer = build<FeedForward>(subject, at::kDouble);
  const at::Tensor x = normal({2, kLength, kHidden}, 35).requires_grad_();
  std::vector<at::Tensor> inputs{x};
  for (const auto& [name, tensor] : layer.parameters()) inputs.push_back(tensor);
  const auto at_scale = [&](double scale) {
    Sequence seq = one_document(2, kLength);
    seq.aux_scale = scale;
    return gradients(layer(x, seq), inputs);
  };
  const auto none = at_scale(0), one = at_scale(0.5), two = at_scale(1);
  for (size_t i = 0; i < inputs.size(); ++i)
    require(((two[i] - none[i]) - 2 * (one[i] - none[i])).abs().max().item<double>() <=
                1e-9 * none[i].abs().max().item<double>() + 1e-12,
            "gradients of the side loss are not proportional to aux_scale (use dsv3::add_loss)");
  Sequence seq = one_document(2, kLength);
  const at::Tensor with = layer(x, seq).detach();
  seq.training = false;
  require_close(layer(x, seq).detach(), with, 1e-12, "the output in validation");
}

void check_saved_values(const Subject& subject) {
  constexpr int64_t kBatch = 4, kLong = 64;
  const Layer layer = build<FeedForward>(subject, at::kFloat);
  const at::Tensor x = normal({kBatch, kLong, kHidden}, 36, at::kFloat).requires_grad_();
  layer(x, one_document(kBatch, kLong));
  const double measured =
      static_cast<double>(bytes_kept([&] { return layer(x, one_document(kBatch, kLong)); })) /
      (4.0 * kBatch * kLong);
  require_saved_values(static_cast<double>(layer.layer->saved_values_per_token()), measured);
}

}  // namespace

std::vector<Check> feed_forward_checks() {
  return {
      {"declarations", "declares sound parameters, and the same ones on the meta device",
       check_declarations<FeedForward>},
      {"shapes", "returns [B, T, D] in the input's dtype: fp32, bf16 and float64",
       check_shapes<FeedForward>},
      {"inputs", "leaves its input and its parameters alone, and keeps no input",
       check_inputs<FeedForward>},
      {"determinism", "gives the same bits again", check_determinism<FeedForward>},
      {"tokens", "computes a token from nothing but the token", check_tokens},
      {"counts", "counts once a token, when training and not recomputing", check_counts},
      {"state", "goes on from saved parameters and buffers as if never stopped", check_state},
      {"side_loss", "scales its side loss with aux_scale", check_side_loss},
      {"gradients", "has the gradients of central differences", check_gradients<FeedForward>},
      {"recompute", "gives the same bits when a block is recomputed", check_recompute<FeedForward>},
      {"saved_values", "keeps what saved_values_per_token() says", check_saved_values},
      {"memory", "gives its memory back", check_memory<FeedForward>},
      {"model",
       "trains the same in a model with recomputation, other micro-batches, and a "
       "strategy that frees parameters between uses",
       check_in_model},
  };
}

}  // namespace dsv3::conformance
