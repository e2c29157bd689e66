// Promises of attention plugins.
#include <ATen/ATen.h>

#include <dsv3/sdk/ops.h>

#include "conformance/layers.h"
#include "conformance/model.h"

namespace dsv3::conformance {
namespace {

using Layer = Built<Attention>;

void check_causality(const Subject& subject) {
  const Layer layer = build<Attention>(subject, at::kFloat);
  const at::Tensor x = normal({2, kLength, kHidden}, 20, at::kFloat);
  const at::Tensor y = layer(x, one_document(2, kLength)).detach();
  for (const int64_t changed : {int64_t{1}, kLength / 2, kLength - 1}) {
    at::Tensor other = x.clone();
    other.narrow(1, changed, 1).add_(1);
    const at::Tensor z = layer(other, one_document(2, kLength)).detach();
    require_equal(z.narrow(1, 0, changed), y.narrow(1, 0, changed),
                  "with token " + std::to_string(changed) + " changed, the output before it");
    require(difference(z.narrow(1, changed, 1), y.narrow(1, changed, 1)) > 1e-4,
            "an output does not depend on its own token");
    if (changed + 1 < kLength)
      require(difference(z.narrow(1, changed + 1, 1), y.narrow(1, changed + 1, 1)) > 1e-7,
              "an output does not depend on the token before it");
  }
}

void check_documents(const Subject& subject) {
  const Layer layer = build<Attention>(subject, at::kFloat);
  const at::Tensor x = normal({2, kLength, kHidden}, 22, at::kFloat);
  const Sequence seq = packed(2, kLength, {0, 5, 9});
  const at::Tensor y = layer(x, seq).detach();
  at::Tensor other = x.clone();
  other.narrow(1, 0, 5).add_(1);
  other.narrow(1, 9, 3).sub_(2);
  require_equal(layer(other, seq).detach().narrow(1, 5, 4), y.narrow(1, 5, 4),
                "with other documents of the row changed, a document's output");
  const Layer wide = build<Attention>(subject, at::kDouble);
  const at::Tensor x64 = x.to(at::kDouble);
  require_close(wide(x64, packed(2, kLength, {0, 5, 9})).detach().narrow(1, 5, 4),
                wide(x64.narrow(1, 5, 4), one_document(2, 4)).detach(), 1e-9,
                "a document packed behind another one, against the document alone:");
}

void check_rows(const Subject& subject) {
  const Layer layer = build<Attention>(subject, at::kFloat);
  const at::Tensor x = normal({3, kLength, kHidden}, 23, at::kFloat);
  at::Tensor other = x.clone();
  other.narrow(0, 1, 1).add_(1);
  const at::Tensor y = layer(x, one_document(3, kLength)).detach();
  const at::Tensor z = layer(other, one_document(3, kLength)).detach();
  for (const int64_t row : {0, 2})
    require_equal(z[row], y[row], "with another row of the batch changed, a row's output");
}

// Decodes two texts with a cache: of different length at the start, then one or three tokens at
// once, some taken back, and steps in which one text rests.
void check_cache(const Subject& subject) {
  const Layer layer = build<Attention>(subject, at::kDouble);
  const int64_t width = layer.layer->cache_values_per_token();
  require(width > 0, "cache_values_per_token() is not positive");
  const at::NoGradGuard no_grad;
  const at::Tensor x = normal({2, kLength, kHidden}, 24);
  Sequence seq = one_document(2, kLength);
  seq.training = false;
  const at::Tensor wanted = layer(x, seq);
  KvCache cache(2, width, at::kDouble, at::kCPU);
  const auto feed = [&](const std::vector<int64_t>& counts, const std::string& what) {
    const std::vector<int64_t> held = cache.lengths();
    std::vector<at::Tensor> tokens, positions, results;
    for (int64_t row = 0; row < 2; ++row) {
      const int64_t begin = held[row], count = counts[row];
      tokens.push_back(x[row].narrow(0, begin, count));
      positions.push_back(at::arange(begin, begin + count));
      results.push_back(wanted[row].narrow(0, begin, count));
    }
    cache.expect(counts);
    Sequence step;
    step.positions = at::cat(positions).unsqueeze(0);
    step.cache = &cache;
    require_close(layer(at::cat(tokens).unsqueeze(0), step), at::cat(results).unsqueeze(0), 1e-9,
                  what + ", against the forward without a cache:");
    for (size_t row = 0; row < 2; ++row)
      require(cache.lengths()[row] == held[row] + counts[row],
              "it does not append every token to the cache exactly once");
  };
  feed({4, 6}, "reading two texts into a cache");
  feed({1, 1}, "decoding a token with a cache");
  feed({3, 1}, "decoding with a cache, three tokens at once in a row");
  cache.truncate(0, 6);
  feed({1, 0}, "decoding with a cache of which tokens were taken back");
  feed({2, 3}, "decoding some tokens with a cache");
  require(cache.bytes() == (9 + 11) * width * 8, "its cache is not what it declares");
}

void check_flops(const Subject& subject) {
  const Layer layer = build<Attention>(subject, at::kFloat);
  const double declared = layer.layer->attention_flops(kLength);
  require(declared > 0, "attention_flops() is not positive");
  require(std::abs(layer.layer->attention_flops(2 * kLength) / declared - 2) < 1e-9,
          "attention_flops() a token is not proportional to the length of the sequence");
  double weights = 0;
  for (const Parameter& each : layer.context.store->parameters())
    if (each.tensor.dim() >= 2)
      weights += 2.0 * each.spec.active * static_cast<double>(each.tensor.numel());
  const at::NoGradGuard no_grad;
  const at::Tensor x = normal({1, kLength, kHidden}, 25, at::kFloat);
  const bool kept = reference_ops();
  use_reference_ops(true);  // plain products that can be counted
  Sequence seq = one_document(1, kLength);
  seq.training = false;
  const double all = product_flops([&] { layer(x, seq); }) / kLength;
  use_reference_ops(kept);
  const double measured = all - weights;
  require(std::abs(measured - declared) < 0.05 * declared,
          "attention_flops(" + std::to_string(kLength) + ") says " + c10::str(declared) +
              " a token; counted: " + c10::str(all) + " of all matrix products less " +
              c10::str(weights) + " of the weights = " + c10::str(measured));
}

void check_saved_values(const Subject& subject) {
  constexpr int64_t kBatch = 4, kLong = 64;
  const Layer layer = build<Attention>(subject, at::kFloat);
  const at::Tensor x = normal({kBatch, kLong, kHidden}, 26, at::kFloat).requires_grad_();
  layer(x, one_document(kBatch, kLong));  // tables and caches
  const double measured =
      static_cast<double>(bytes_kept([&] { return layer(x, one_document(kBatch, kLong)); })) /
      (4.0 * kBatch * kLong);
  require_saved_values(static_cast<double>(layer.layer->saved_values_per_token(kLong)), measured);
}

}  // namespace

std::vector<Check> attention_checks() {
  return {
      {"declarations", "declares sound parameters, and the same ones on the meta device",
       check_declarations<Attention>},
      {"shapes", "returns [B, T, D] in the input's dtype: fp32, bf16 and float64",
       check_shapes<Attention>},
      {"inputs", "leaves its input and its parameters alone, and keeps no input",
       check_inputs<Attention>},
      {"determinism", "gives the same bits again", check_determinism<Attention>},
      {"causality", "looks at no later token", check_causality},
      {"documents", "keeps packed documents apart, bit for bit", check_documents},
      {"rows", "keeps the rows of a batch apart, bit for bit", check_rows},
      {"cache", "generates with a cache what it computes without one", check_cache},
      {"gradients", "has the gradients of central differences", check_gradients<Attention>},
      {"recompute", "gives the same bits when a block is recomputed", check_recompute<Attention>},
      {"flops", "does the matrix products that attention_flops() says", check_flops},
      {"saved_values", "keeps what saved_values_per_token() says", check_saved_values},
      {"memory", "gives its memory back", check_memory<Attention>},
      {"model",
       "trains the same in a model with recomputation, other micro-batches, and a "
       "strategy that frees parameters between uses",
       check_in_model},
  };
}

}  // namespace dsv3::conformance
