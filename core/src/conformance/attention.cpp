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

// Decodes x with a cache: rows of different length are prefilled right-padded, then token by token.
void check_cache(const Subject& subject) {
  const Layer layer = build<Attention>(subject, at::kDouble);
  require(layer.layer->cache_values_per_token() > 0, "cache_values_per_token() is not positive");
  const at::NoGradGuard no_grad;
  const at::Tensor x = normal({2, kLength, kHidden}, 24);
  Sequence seq = one_document(2, kLength);
  seq.training = false;
  const at::Tensor wanted = layer(x, seq);
  KvCache cache(2, layer.layer->cache_values_per_token(), at::kDouble, at::kCPU);
  const int64_t prompts[] = {4, 6};
  const auto feed = [&](const at::Tensor& tokens, const at::Tensor& positions) {
    Sequence step;
    step.positions = positions;
    step.cache = &cache;
    return layer(tokens, step);
  };
  at::Tensor prompt = x.narrow(1, 0, 6).clone();
  prompt[0].narrow(0, 4, 2).fill_(7);  // padding
  const at::Tensor first = feed(prompt, at::arange(6).expand({2, 6}).contiguous());
  for (int64_t row = 0; row < 2; ++row)
    require_close(first[row].narrow(0, 0, prompts[row]), wanted[row].narrow(0, 0, prompts[row]),
                  1e-9, "prefill with a cache, against the forward without one:");
  cache.truncate(at::tensor({4, 6}, at::kLong));
  for (int64_t step = 0; step < 6; ++step) {
    const at::Tensor tokens = at::stack({x[0].narrow(0, 4 + step, 1), x[1].narrow(0, 6 + step, 1)});
    const at::Tensor positions = at::tensor({4 + step, 6 + step}, at::kLong).view({2, 1});
    const at::Tensor y = feed(tokens, positions);
    for (int64_t row = 0; row < 2; ++row)
      require_close(y[row], wanted[row].narrow(0, prompts[row] + step, 1), 1e-9,
                    "decoding with a cache, against the forward without one:");
  }
  require(at::equal(cache.lengths(), at::tensor({10, 12}, at::kLong)),
          "it does not append every token to the cache exactly once");
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
