// Conformance checks for attention plugins.
#include <dsv3/sdk/ops.h>

#include "conformance/layers.h"

namespace dsv3::conformance {

void attention_checks(const AddCheck& check) {
  using Layer = LayerUnderTest<Attention>;
  cheap_layer_checks<Attention>(check);
  check("causality", "does not depend on later tokens", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 20, at::kFloat);
    const at::Tensor y = layer(x);
    for (const int64_t changed : {int64_t{1}, kLength / 2, kLength - 1}) {
      at::Tensor other = x.clone();
      other.narrow(1, changed, 1).add_(1);
      const at::Tensor z = layer(other);
      require_equal(z.narrow(1, 0, changed), y.narrow(1, 0, changed),
                    "with token " + std::to_string(changed) + " changed, the output before it");
      require(difference(z.narrow(1, changed, 1), y.narrow(1, changed, 1)) > 1e-4,
              "an output does not depend on its own token");
      if (changed + 1 < kLength)
        require(difference(z.narrow(1, changed + 1, 1), y.narrow(1, changed + 1, 1)) > 1e-7,
                "an output does not depend on the token before it");
    }
  });
  check("documents", "keeps packed documents apart, bit for bit", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 22, at::kFloat);
    const Sequence seq = packed(2, kLength, {5, 9});
    at::Tensor other = x.clone();
    other.narrow(1, 0, 5).add_(1);
    other.narrow(1, 9, 3).sub_(2);
    require_equal(layer(other, seq).narrow(1, 5, 4), layer(x, seq).narrow(1, 5, 4),
                  "with the row's other documents changed, a document's output");
    const Layer wide(subject, at::kDouble);
    const at::Tensor x64 = x.to(at::kDouble);
    require_close(
        wide(x64, seq).narrow(1, 5, 4), wide(x64.narrow(1, 5, 4)), 1e-9,
        "the output of a document packed after another, compared with the document alone,");
  });
  check("rows", "keeps the rows of a batch apart, bit for bit", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const at::Tensor x = normal({3, kLength, kHidden}, 23, at::kFloat);
    at::Tensor other = x.clone();
    other.narrow(0, 1, 1).add_(1);
    const at::Tensor y = layer(x), z = layer(other);
    for (const int64_t row : {0, 2})
      require_equal(z[row], y[row], "with another row of the batch changed, a row's output");
  });
  // Decodes two sequences with a cache: prefixes of different lengths, then one or three tokens per
  // step, some of which are removed, and steps in which one sequence gets no token.
  check("cache", "computes the same with a cache as without one", [](const Subject& subject) {
    const Layer layer(subject, at::kDouble);
    const int64_t width = layer.layer->cache_values_per_token();
    require(width > 0, "cache_values_per_token() is not positive");
    const at::NoGradGuard no_grad;
    const at::Tensor x = normal({2, kLength, kHidden}, 24);
    const Sequence seq = one_document(2, kLength, false);
    const at::Tensor expected = layer(x, seq);
    KvCache cache(2, width, at::kDouble, at::kCPU);
    const auto feed = [&](const std::vector<int64_t>& counts, const std::string& what) {
      const std::vector<int64_t> held = cache.lengths();
      std::vector<at::Tensor> tokens, positions, results;
      for (size_t row = 0; row < 2; ++row) {
        tokens.push_back(x[int64_t(row)].narrow(0, held[row], counts[row]));
        positions.push_back(at::arange(held[row], held[row] + counts[row]));
        results.push_back(expected[int64_t(row)].narrow(0, held[row], counts[row]));
      }
      cache.expect(counts);
      Sequence step;
      step.positions = at::cat(positions).unsqueeze(0);
      step.cache = &cache;
      require_close(layer(at::cat(tokens).unsqueeze(0), step), at::cat(results).unsqueeze(0), 1e-9,
                    "the output of " + what + ", compared with forward without a cache,");
      for (size_t row = 0; row < 2; ++row)
        require(cache.lengths()[row] == held[row] + counts[row],
                "it does not append every token to the cache exactly once");
    };
    feed({4, 6}, "reading two sequences into a cache");
    feed({1, 1}, "decoding one token with a cache");
    feed({3, 1}, "decoding three tokens of a row at once with a cache");
    cache.truncate(0, 6);
    feed({1, 0}, "decoding with a cache after tokens were removed");
    feed({2, 3}, "decoding several tokens with a cache");
    require(cache.bytes() == (9 + 11) * width * 8,
            "the cache does not have the size that cache_values_per_token() declares");
  });
  check("flops", "takes the FLOPs that attention_flops() declares", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const double declared = layer.layer->attention_flops(kLength);
    require(declared > 0, "attention_flops() is not positive");
    require(std::abs(layer.layer->attention_flops(2 * kLength) / declared - 2) < 1e-9,
            "attention_flops() per token is not proportional to the length of the sequence");
    double weights = 0;
    for (const Parameter& parameter : layer.parameters())
      if (parameter.tensor.dim() >= 2)
        weights += 2.0 * parameter.spec.active * double(parameter.tensor.numel());
    const at::NoGradGuard no_grad;
    const at::Tensor x = normal({1, kLength, kHidden}, 25, at::kFloat);
    const Sequence seq = one_document(1, kLength, false);
    const bool reference = reference_ops();
    use_reference_ops(true);  // LibTorch's matrix products can be counted
    const double all = product_flops([&] { layer(x, seq); }) / kLength;
    use_reference_ops(reference);
    require(std::abs(all - weights - declared) < 0.05 * declared, "attention_flops(", kLength,
            ") is ", declared, " per token, but ", all, " FLOPs of all matrix products minus ",
            weights, " for the weights leave ", all - weights);
  });
  costly_layer_checks<Attention>(check);
}

}  // namespace dsv3::conformance
