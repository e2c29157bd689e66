#include <ATen/ATen.h>
#include <catch2/catch.hpp>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/error.h>

#include "tiny.h"

namespace dsv3::test {
namespace {

LossParts backward(Model& model, const Batch& batch, const LossScale& scale) {
  const LossParts parts = model.loss(batch, scale);
  torch::autograd::backward({parts.total}, {});
  return parts;
}

std::vector<at::Tensor> counts_of(const Model& model) {
  std::vector<at::Tensor> counts;
  for (const auto& layer : model.feed_forward()) counts.push_back(layer->step_counts().clone());
  return counts;
}

Batch rows(const Batch& batch, int64_t first, int64_t count) {
  return {batch.tokens.narrow(0, first, count), batch.document_ids.narrow(0, first, count)};
}

TEST_CASE(
    "results with recomputation are bit-identical, including auxiliary losses and token counts") {
  Experiment experiment = tiny_experiment();
  experiment.model.tied_head = GENERATE(false, true);
  experiment.mtp.input = GENERATE("normed", "raw");
  experiment.loss.z = 0.01;
  const Batch batch = tiny_batch();
  const LossScale scale = scale_of(batch, 2);
  const auto plain = tiny_model(experiment);
  const LossParts expected = backward(*plain, batch, scale);
  experiment.model.recompute = "full";
  const auto recomputed = tiny_model(experiment);
  const LossParts actual = backward(*recomputed, batch, scale);
  CHECK(at::equal(actual.total, expected.total));
  CHECK(at::equal(actual.mtp, expected.mtp));
  CHECK(equal_bits(gradients(*recomputed), gradients(*plain)));
  const auto actual_counts = counts_of(*recomputed), expected_counts = counts_of(*plain);
  REQUIRE(actual_counts.size() == 4);
  for (size_t i = 0; i < actual_counts.size(); ++i) {
    CHECK(expected_counts[i].sum().item<int64_t>() > 0);
    CHECK(at::equal(actual_counts[i], expected_counts[i]));
  }
}

TEST_CASE("the auxiliary loss contributes to the gradients") {
  Experiment experiment = tiny_experiment();
  const Batch batch = tiny_batch();
  LossScale scale = scale_of(batch, 2);
  const auto model = tiny_model(experiment);
  backward(*model, batch, scale);
  const Named with = gradients(*model);
  clear_gradients(*model);
  scale.sequences = 1 << 30;  // a vanishing aux_scale
  backward(*model, batch, scale);
  CHECK(largest_difference(gradients(*model), with) > 1e-2);
}

TEST_CASE("four micro-batches of one row give the same result as one micro-batch of four rows") {
  Experiment experiment = tiny_experiment();
  experiment.mtp.denominator = GENERATE("main", "own");
  experiment.model.recompute = GENERATE("none", "full");
  experiment.loss.z = 0.01;
  const Batch batch = tiny_batch();
  const LossScale scale = scale_of(batch, 2);
  const auto whole = tiny_model(experiment), pieces = tiny_model(experiment);
  const LossParts expected = backward(*whole, batch, scale);
  double total = 0, main = 0, mtp = 0;
  for (int64_t b = 0; b < 4; ++b) {
    const LossParts part = backward(*pieces, rows(batch, b, 1), scale);
    total += part.total.item<double>();
    main += part.main.item<double>();
    mtp += part.mtp.item<double>();
  }
  CHECK(total == Approx(expected.total.item<double>()).epsilon(1e-6));
  CHECK(main == Approx(expected.main.item<double>()).epsilon(1e-6));
  CHECK(mtp == Approx(expected.mtp.item<double>()).epsilon(1e-6));
  CHECK(largest_difference(gradients(*pieces), gradients(*whole)) < 2e-6);
  const auto actual_counts = counts_of(*pieces), expected_counts = counts_of(*whole);
  for (size_t i = 0; i < actual_counts.size(); ++i)
    CHECK(at::equal(actual_counts[i], expected_counts[i]));
}

TEST_CASE("a tied head uses the embedding's weight, whose gradient is the sum over both uses") {
  Experiment experiment = tiny_experiment();
  const auto untied = tiny_model(experiment);
  experiment.model.tied_head = true;
  const auto tied = tiny_model(experiment);
  CHECK(values(*tied).count("head.weight") == 0);
  {
    const at::NoGradGuard no_grad;
    values(*untied).at("head.weight").copy_(values(*untied).at("embedding.weight"));
  }
  const Batch batch = tiny_batch();
  const LossScale scale = scale_of(batch, 2);
  const LossParts expected = backward(*untied, batch, scale),
                  actual = backward(*tied, batch, scale);
  CHECK(at::equal(actual.total, expected.total));
  const Named separate = gradients(*untied);
  const at::Tensor sum = separate.at("embedding.weight") + separate.at("head.weight");
  CHECK(at::allclose(gradients(*tied).at("embedding.weight"), sum, 1e-5, 1e-7));
}

TEST_CASE("documents in the same row do not affect each other") {
  Experiment experiment = tiny_experiment();
  const auto model = tiny_model(experiment);
  LossScale one;  // the loss divisors are 1, so that the losses of the documents can be added
  one.sequences = 1 << 30;
  Batch joined;
  joined.tokens = at::tensor({4, 9, 2, 7, 7, 1, 15, 3, 20}, at::kLong).view({1, 9});
  joined.document_ids = at::tensor({0, 0, 0, 0, 1, 1, 1, 1, 1}, at::kLong).view({1, 9});
  const LossParts whole = backward(*model, joined, one);
  const Named expected = gradients(*model);
  clear_gradients(*model);
  double main = 0, mtp = 0;
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {4, 5}}) {
    const LossParts part = backward(*model, {joined.tokens.narrow(1, first, count), {}}, one);
    main += part.main.item<double>();
    mtp += part.mtp.item<double>();
  }
  CHECK(main == Approx(whole.main.item<double>()).epsilon(1e-6));
  CHECK(mtp == Approx(whole.mtp.item<double>()).epsilon(1e-6));
  CHECK(largest_difference(gradients(*model), expected) < 1e-5);
  const auto [sum, targets] = model->evaluate(joined);
  CHECK(sum == Approx(main).epsilon(1e-6));
  CHECK(targets == 7);
}

TEST_CASE("a micro-batch without targets has zero loss instead of NaN") {
  const auto model = tiny_model(tiny_experiment());
  Batch batch;
  batch.tokens = at::ones({2, 5}, at::kLong);
  batch.document_ids = at::full({2, 5}, -1, at::kLong);
  LossScale scale = scale_of(batch, 2);
  scale.sequences = 1 << 30;
  const LossParts parts = backward(*model, batch, scale);
  CHECK(parts.total.item<float>() == 0);
  CHECK(parts.mtp.item<float>() == 0);
  for (const auto& [name, grad] : gradients(*model)) {
    INFO(name);
    CHECK(grad.abs().max().item<float>() < 1e-6);
  }
  CHECK(model->evaluate(batch) == std::pair<double, int64_t>{0, 0});
}

/// Returns the next counts[b] tokens of each row b of `text` [B, T], after those already in
/// `caches`.
NewTokens next_of(const at::Tensor& text, const std::vector<KvCache>& caches,
                  const std::vector<int64_t>& counts) {
  NewTokens added;
  added.counts = counts;
  for (size_t b = 0; b < counts.size(); ++b)
    for (int64_t t = 0; t < counts[b]; ++t) {
      const int64_t at = caches.front().lengths()[b] + t;
      added.logits_at.push_back(int64_t(added.tokens.size()));
      added.tokens.push_back(text[int64_t(b)][at].item<int64_t>());
    }
  return added;
}

TEST_CASE("cached generation computes the same logits as a full forward pass") {
  const auto model = tiny_model(tiny_experiment());
  const at::Tensor text = tiny_batch().tokens.narrow(0, 0, 2);
  const at::Tensor expected = model->logits(text);  // [B, T, V] = [2, 9, V]
  REQUIRE(expected.sizes() == at::IntArrayRef({2, 9, tiny_vocab}));
  std::vector<KvCache> caches = model->make_caches(2);
  REQUIRE(caches.size() == 4);  // one cache per layer, then one per MTP module
  for (const std::vector<int64_t>& counts :
       std::vector<std::vector<int64_t>>{{4, 2}, {1, 1}, {0, 3}, {3, 1}, {1, 2}}) {
    const std::vector<int64_t> lengths = caches.front().lengths();
    const NewTokens added = next_of(text, caches, counts);
    const Extended actual = model->extend(added, caches);
    REQUIRE(actual.logits.sizes() == at::IntArrayRef({counts[0] + counts[1], tiny_vocab}));
    const at::Tensor rows = at::cat({expected[0].narrow(0, lengths[0], counts[0]),
                                     expected[1].narrow(0, lengths[1], counts[1])});
    CHECK(at::allclose(actual.logits, rows, 1e-5, 1e-5));
    CHECK_FALSE(actual.logits.requires_grad());
  }
  CHECK(caches[0].lengths() == std::vector<int64_t>{9, 9});
  CHECK(caches[2].bytes() == 0);
}

TEST_CASE("MTP modules with caches compute the same logits as a full forward pass") {
  Experiment experiment = tiny_experiment();
  experiment.mtp.input = GENERATE("normed", "raw");
  experiment.mtp.concat = GENERATE("embedding_first", "hidden_first");
  const auto model = tiny_model(experiment);
  const at::Tensor text = tiny_batch().tokens.narrow(0, 0, 2);
  const at::Tensor expected = model->mtp_logits(text);  // [depth, B, T, V] = [2, 2, 9, V]
  std::vector<KvCache> caches = model->make_caches(2);
  at::Tensor hidden = model->extend(next_of(text, caches, {9, 9}), caches).hidden;
  for (int64_t k = 0; k < 2; ++k) {
    // In two calls, passes the module every position t for which token t + k + 1 exists. Each call
    // contains different numbers of positions from the two rows.
    const int64_t count = 8 - k;
    std::vector<at::Tensor> actual[2];
    std::vector<at::Tensor> next[2];
    std::vector<int64_t> done{0, 0};
    for (const std::vector<int64_t>& counts :
         std::vector<std::vector<int64_t>>{{2, 5}, {count - 2, count - 5}}) {
      NewTokens added;
      added.counts = counts;
      std::vector<at::Tensor> inputs;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t t = 0; t < counts[b]; ++t) {
          added.logits_at.push_back(int64_t(added.tokens.size()));
          added.tokens.push_back(text[b][done[b] + t + k + 1].item<int64_t>());
          inputs.push_back(hidden[b * hidden.size(0) / 2 + done[b] + t]);
        }
      const Extended out = model->extend_mtp(size_t(k), added, at::stack(inputs), caches);
      CHECK(out.hidden.defined() == (k == 0));
      actual[0].push_back(out.logits.narrow(0, 0, counts[0]));
      actual[1].push_back(out.logits.narrow(0, counts[0], counts[1]));
      if (k == 0) {
        next[0].push_back(out.hidden.narrow(0, 0, counts[0]));
        next[1].push_back(out.hidden.narrow(0, counts[0], counts[1]));
      }
      for (int64_t b = 0; b < 2; ++b) done[b] += counts[b];
    }
    for (int64_t b = 0; b < 2; ++b)
      CHECK(at::allclose(at::cat(actual[b]), expected[k][b].narrow(0, 0, count), 1e-5, 1e-5));
    if (k == 0) hidden = at::cat({at::cat(next[0]), at::cat(next[1])});
  }
}

TEST_CASE("the loss equals the cross-entropy of the logits") {
  Experiment experiment = tiny_experiment();
  experiment.mtp.depth = 0;
  experiment.loss.z = 0.1;
  experiment.loss.chunk = GENERATE(0, 3);
  const auto model = tiny_model(experiment);
  Batch batch;
  batch.tokens = tiny_batch().tokens;
  const at::Tensor logits = model->logits(batch.tokens.narrow(1, 0, 8));
  const at::Tensor targets = batch.tokens.narrow(1, 1, 8).unsqueeze(2);
  const at::Tensor log_z = logits.logsumexp(2, true);
  const double entropy = (log_z - logits.gather(2, targets)).sum().item<double>();
  const LossParts parts = model->loss(batch, scale_of(batch, 0));
  CHECK(parts.main.item<double>() == Approx(entropy / 32).epsilon(1e-6));
  const double z = 0.1 * log_z.square().sum().item<double>();
  CHECK(parts.total.item<double>() == Approx((entropy + z) / 32).epsilon(1e-6));
  CHECK_FALSE(parts.mtp.defined());
  const auto [sum, count] = model->evaluate(batch);
  CHECK(sum == Approx(entropy).epsilon(1e-6));
  CHECK(count == 32);
}

TEST_CASE("a model computes in the dtype of its parameters") {
  const at::ScalarType dtype = GENERATE(at::kBFloat16, at::kDouble);
  const auto model = tiny_model(tiny_experiment(), 1, dtype);
  const auto exact = tiny_model(tiny_experiment(), 1, at::kFloat);
  const Batch batch = tiny_batch();
  const LossScale scale = scale_of(batch, 2);
  const LossParts actual = backward(*model, batch, scale),
                  expected = backward(*exact, batch, scale);
  CHECK(actual.total.scalar_type() == (dtype == at::kDouble ? at::kDouble : at::kFloat));
  CHECK(actual.total.item<double>() ==
        Approx(expected.total.item<double>()).epsilon(dtype == at::kDouble ? 1e-5 : 0.05));
  CHECK(values(*model).at("layers.0.attention.q.weight").grad().scalar_type() == dtype);
}

}  // namespace
}  // namespace dsv3::test
