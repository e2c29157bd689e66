// Conformance checks for attention plugins.
#include <dsv3/sdk/ops.h>

#include "conformance/device.h"
#include "conformance/layers.h"

namespace dsv3::conformance {

void attention_checks(const AddCheck& check) {
  using Layer = LayerUnderTest<Attention>;
  cheap_layer_checks<Attention>(check);
  check("causality", "computes outputs that ignore later tokens", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const at::Tensor x = normal({2, kLength, kHidden}, 20, at::kFloat);
    const at::Tensor y = layer(x);
    for (const int64_t changed : {int64_t{1}, kLength / 2, kLength - 1}) {
      at::Tensor other = x.clone();
      other.narrow(1, changed, 1).add_(1);
      const at::Tensor z = layer(other);
      require_equal(
          z.narrow(1, 0, changed), y.narrow(1, 0, changed),
          "the output for earlier tokens after changing token " + std::to_string(changed));
      require(difference(z.narrow(1, changed, 1), y.narrow(1, changed, 1)) > 1e-4,
              "a token's output does not depend on the token itself");
      if (changed + 1 < kLength)
        require(difference(z.narrow(1, changed + 1, 1), y.narrow(1, changed + 1, 1)) > 1e-7,
                "a token's output does not depend on the previous token");
    }
  });
  check("documents", "isolates packed documents from each other, bit for bit, as dsv3::attend does",
        [](const Subject& subject) {
          const Layer layer(subject, at::kFloat);
          const at::Tensor x = normal({2, kLength, kHidden}, 22, at::kFloat);
          const Sequence seq = packed(2, kLength, {5, 9});
          at::Tensor other = x.clone();
          other.narrow(1, 0, 5).add_(1);
          other.narrow(1, 9, 3).sub_(2);
          require_equal(layer(other, seq).narrow(1, 5, 4), layer(x, seq).narrow(1, 5, 4),
                        "a document's output after changing the other documents in its row");
          const Layer wide(subject, at::kDouble);
          const at::Tensor x64 = x.to(at::kDouble);
          // Not in training, where dropout depends on a token's place in its row.
          Sequence evaluation = seq;
          evaluation.training = false;
          require_close(wide(x64, evaluation).narrow(1, 5, 4),
                        wide(x64.narrow(1, 5, 4), one_document(2, 4, false)), 1e-9,
                        "the output for a document packed after another, compared with the output "
                        "for the document alone,");
        });
  check("rows", "isolates batch rows from each other, bit for bit", [](const Subject& subject) {
    const Layer layer(subject, at::kFloat);
    const at::Tensor x = normal({3, kLength, kHidden}, 23, at::kFloat);
    at::Tensor other = x.clone();
    other.narrow(0, 1, 1).add_(1);
    const at::Tensor y = layer(x), z = layer(other);
    for (const int64_t row : {0, 2})
      require_equal(z[row], y[row], "a row's output after changing another row in the batch");
  });
  // Decodes two sequences with a cache: first prefixes of different lengths, then up to three
  // tokens per sequence in each step. Some cached tokens are removed in between.
  check("cache", "returns the same output with and without a cache", [](const Subject& subject) {
    const Layer layer(subject, at::kDouble);
    const int64_t width = layer.layer->cache_values_per_token();
    require(width > 0, "cache_values_per_token() is not positive");
    const at::NoGradGuard no_grad;
    const at::Tensor x = normal({2, kLength, kHidden}, 24);
    const Sequence seq = one_document(2, kLength, false);
    const at::Tensor expected = layer(x, seq);
    const std::optional<int64_t> window = layer.layer->cache_window();
    require(!window || *window > 0, "cache_window() is ", *window, "; it must be positive");
    KvCache cache(2, width, at::kDouble, at::kCPU, window);
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
                    "the output when " + what + ", compared with the output without a cache,");
      for (size_t row = 0; row < 2; ++row)
        require(cache.lengths()[row] == held[row] + counts[row],
                "the layer does not append every token to the cache exactly once");
    };
    feed({4, 6}, "prefilling a cache with two sequences");
    feed({1, 1}, "decoding one token with a cache");
    feed({3, 1}, "decoding three tokens of one sequence in one step with a cache");
    cache.truncate(0, 6);
    feed({1, 0}, "decoding after removing tokens from the cache");
    feed({2, 3}, "decoding several tokens of both sequences with a cache");
    // Without a window, the cache keeps all 9 and 11 tokens. The last step added 2 and 3 of them.
    const int64_t kept = window ? *window - 1 : kLength;
    const int64_t tokens = std::min<int64_t>(7, kept) + 2 + std::min<int64_t>(8, kept) + 3;
    require(cache.bytes() == tokens * width * 8,
            "the cache size does not match cache_values_per_token()");
  });
  costly_layer_checks<Attention>(check);
  device_check(check, &require_same_layer_on_device<Attention>);
}

}  // namespace dsv3::conformance
