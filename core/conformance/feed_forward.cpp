// Conformance checks for feed-forward plugins.
#include "conformance/device.h"
#include "conformance/layers.h"

namespace dsv3::conformance {

void feed_forward_checks(const AddCheck& check) {
  using Layer = LayerUnderTest<FeedForward>;
  cheap_layer_checks<FeedForward>(check);
  // Mixture-of-experts kernels may group tokens differently in each call, which changes the
  // rounding. Differences of up to 1e-6 of the largest value are therefore allowed. A different
  // routing decision would change the output far more.
  check("tokens", "processes each token independently of the others", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 30, at::kFloat);
    const at::Tensor y = layer(x);
    at::Tensor other = x.clone();
    other[1].add_(normal({kLength, kHidden}, 31, at::kFloat));
    other[0].narrow(0, 0, 5).sub_(2);
    require_close(layer(other)[0].narrow(0, 5, kLength - 5), y[0].narrow(0, 5, kLength - 5), 1e-6,
                  "a token's output after changing other tokens");
    // Not in training, where dropout depends on a token's place in the batch.
    const auto evaluate = [&](const at::Tensor& tokens) {
      return layer(tokens, one_document(tokens.size(0), tokens.size(1), false));
    };
    require_close(evaluate(x.narrow(0, 1, 1).narrow(1, 3, 1)),
                  evaluate(x).narrow(0, 1, 1).narrow(1, 3, 1), 1e-6,
                  "the output for a token by itself, compared with its output in a batch,");
  });
  check("counts", "counts each token once, and only in training", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const auto counts = [&] { return layer.layer->step_counts(); };
    if (!counts().defined()) return;
    require(counts().scalar_type() == at::kLong, "step_counts() is not int64");
    require(counts().dim() == 1, "step_counts() does not have one dimension");
    require(counts().eq(0).all().item<bool>(), "step_counts() of a new layer is not zero");
    const at::Tensor x = normal({2, kLength, kHidden}, 32, at::kFloat);
    Sequence seq = one_document(2, kLength);
    layer(x, seq);
    const at::Tensor once = counts().clone();
    require(once.sum().item<int64_t>() > 0, "a forward pass in training counts no tokens");
    const auto require_twice = [&](const char* otherwise) {
      layer(x, seq);
      require(at::equal(counts(), once * 2), otherwise);
    };
    require_twice("step_counts() does not add up over micro-batches");
    seq.recompute = true;
    require_twice("a recomputed forward pass (seq.recompute) counts tokens again");
    seq.recompute = seq.training = false;
    require_twice("a forward pass in validation counts tokens");
    counts().zero_();
    require(counts().eq(0).all().item<bool>(),
            "step_counts() returns a copy, so zeroing it does not zero the layer's counts");
    // Repeats the same rows in two micro-batches, as in gradient accumulation.
    seq = one_document(1, kLength);
    seq.aux_scale = 0.5;
    for (int64_t row = 0; row < 2; ++row) layer(x.narrow(0, row, 1), seq);
    require(at::equal(counts(), once),
            "tokens in two one-row micro-batches are counted differently from those in one "
            "two-row micro-batch");
  });
  check("state", "resumes bit-identically from a saved state", [](const Subject& subject) {
    const Layer one(subject, at::kFloat), other(subject, at::kFloat);
    const auto take_counts = [](const Layer& layer) {
      const at::Tensor counts = layer.layer->step_counts();
      if (!counts.defined()) return counts;
      const at::Tensor taken = counts.clone();
      counts.zero_();
      return taken;
    };
    const auto train = [&](const Layer& layer, const at::Tensor& x, int step) {
      layer(x);
      layer.layer->on_step_end({take_counts(layer), step / 10.0});
    };
    const at::Tensor x = normal({2, kLength, kHidden}, 33, at::kFloat);
    const at::Tensor untouched = other(x).detach();
    take_counts(other);
    one.require_parameters_unchanged("on_step_end() (which may only change buffers)", [&] {
      for (int step = 1; step <= 3; ++step) train(one, x, step);
    });
    require_equal(
        other(x), untouched,
        "a layer's output after training a different layer (layers must not share state)");
    take_counts(other);
    const auto &saved = one.context.store->buffers(), &loaded = other.context.store->buffers();
    for (size_t b = 0; b < saved.size(); ++b) {
      require(saved[b].tensor.sizes() == loaded[b].tensor.sizes(), "buffer ", saved[b].name,
              " changed its shape");
      loaded[b].tensor.copy_(saved[b].tensor);
    }
    for (int step = 4; step <= 5; ++step) {
      const at::Tensor fresh = normal({2, kLength, kHidden}, 34 + step, at::kFloat);
      require_equal(other(fresh), one(fresh),
                    "the output of a layer after its parameters and buffers were saved and loaded");
      train(one, fresh, step);
      train(other, fresh, step);
    }
  });
  // Auxiliary losses are sums over rows multiplied by aux_scale, so gradients are linear in
  // aux_scale.
  check("side_loss", "scales its auxiliary loss with aux_scale", [](const Subject& subject) {
    const Layer layer(subject, at::kDouble);
    const at::Tensor x = normal({2, kLength, kHidden}, 35).requires_grad_();
    Sequence seq = one_document(2, kLength);
    const auto at_scale = [&](double scale) {
      seq.aux_scale = scale;
      return layer.gradients(x, seq);
    };
    const auto none = at_scale(0), half = at_scale(0.5), full = at_scale(1);
    for (size_t i = 0; i < none.size(); ++i)
      require(((full[i] - none[i]) - 2 * (half[i] - none[i])).abs().max().item<double>() <=
                  1e-9 * none[i].abs().max().item<double>() + 1e-12,
              "gradients of the auxiliary loss are not proportional to aux_scale "
              "(use dsv3::add_loss)");
    const at::Tensor in_training = layer(x, seq);
    Sequence other_step = seq;
    ++other_step.key.step;
    if (!at::equal(layer(x, other_step), in_training)) return;  // draws random numbers, as dropout
    seq.training = false;
    require_close(layer(x, seq), in_training, 1e-12,
                  "the output in validation, compared with the output in training,");
  });
  costly_layer_checks<FeedForward>(check);
  device_check(check, &require_same_layer_on_device<FeedForward>);
}

}  // namespace dsv3::conformance
