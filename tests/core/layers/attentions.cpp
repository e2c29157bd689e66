// Compares attention layers with simple implementations of their equations, and tests that every
// attention layer is causal, separates documents, and computes the same results with and without a
// cache.
#include <cmath>

#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/packing.h>

#include "layers.h"

using test::difference;
using test::normal;
using test::OptionValues;

namespace {

constexpr int64_t kHidden = 24;

struct Variant {
  std::string name;
  OptionValues options;
};

const OptionValues kMla = {{"heads", int64_t{3}},        {"q_lora_rank", int64_t{10}},
                           {"kv_lora_rank", int64_t{6}}, {"qk_nope_dim", int64_t{5}},
                           {"qk_rope_dim", int64_t{4}},  {"v_dim", int64_t{7}}};

OptionValues with(OptionValues values, const OptionValues& more) {
  for (const auto& [key, value] : more) values[key] = value;
  return values;
}

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"mla", kMla},
      {"mla", with(kMla, {{"q_lora_rank", int64_t{0}}, {"decode", std::string("naive")}})},
      {"mha", {{"heads", int64_t{4}}}},
      {"mha",
       {{"heads", int64_t{4}},
        {"kv_heads", int64_t{2}},
        {"head_dim", int64_t{8}},
        {"qk_norm", true},
        {"rotary_share", 0.5}}},
      {"mha", {{"heads", int64_t{4}}, {"kv_heads", int64_t{1}}, {"rotary_share", 0.0}}},
  };
  return all;
}

struct Layer {
  dsv3::LayerContext context;
  std::shared_ptr<dsv3::Attention> attention;

  explicit Layer(const Variant& variant, at::ScalarType dtype = at::kDouble)
      : context(test::context(kHidden, dtype)),
        attention(test::make_attention(variant.name, variant.options, context)) {
    test::fill(*context.store);
  }
  at::Tensor operator()(const at::Tensor& x, const dsv3::Sequence& seq) const {
    return attention->forward(x, seq);
  }
  at::Tensor weight(const std::string& name) const {
    return test::parameter(*context.store, "layer." + name + ".weight");
  }
};

at::Tensor norm_formula(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x / (x.pow(2).mean(-1, true) + eps).sqrt() * weight;
}

// Applies interleaved RoPE with theta 10000 to one head, x [T, R].
at::Tensor rope_formula(const at::Tensor& x) {
  std::vector<at::Tensor> out;
  for (int64_t t = 0; t < x.size(0); ++t)
    for (int64_t i = 0; i < x.size(1) / 2; ++i) {
      const double angle = t * std::pow(10000.0, -2.0 * i / x.size(1));
      out.push_back(x[t][2 * i] * std::cos(angle) - x[t][2 * i + 1] * std::sin(angle));
      out.push_back(x[t][2 * i] * std::sin(angle) + x[t][2 * i + 1] * std::cos(angle));
    }
  return at::stack(out).view(x.sizes());
}

at::Tensor causal_softmax(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const at::Tensor scores = q.mm(k.t()) / std::sqrt(static_cast<double>(q.size(1)));
  const at::Tensor later = at::ones_like(scores).triu(1).to(at::kBool);
  return scores.masked_fill(later, -INFINITY).softmax(-1).mm(v);
}

}  // namespace

TEST_CASE("MLA matches the equations in the DeepSeek-V2 paper") {
  const bool query_latent = GENERATE(true, false);
  const Layer layer({"mla", query_latent ? kMla : with(kMla, {{"q_lora_rank", int64_t{0}}})});
  const at::Tensor x = normal({2, 5, kHidden}, 50).requires_grad_();
  std::vector<at::Tensor> rows;
  for (int64_t b = 0; b < 2; ++b) {
    const at::Tensor q = query_latent ? norm_formula(x[b].mm(layer.weight("q_a").t()),
                                                     layer.weight("q_a_norm"), 1e-6)
                                            .mm(layer.weight("q_b").t())
                                      : x[b].mm(layer.weight("q").t());
    const at::Tensor kv = x[b].mm(layer.weight("kv_a").t());
    const at::Tensor latent = norm_formula(kv.narrow(1, 0, 6), layer.weight("kv_a_norm"), 1e-6);
    const at::Tensor k_rope = rope_formula(kv.narrow(1, 6, 4));
    std::vector<at::Tensor> heads;
    for (int64_t h = 0; h < 3; ++h) {
      const at::Tensor up = latent.mm(layer.weight("kv_b").narrow(0, h * 12, 12).t());
      const at::Tensor head_q = q.narrow(1, h * 9, 9);
      heads.push_back(
          causal_softmax(at::cat({head_q.narrow(1, 0, 5), rope_formula(head_q.narrow(1, 5, 4))}, 1),
                         at::cat({up.narrow(1, 0, 5), k_rope}, 1), up.narrow(1, 5, 7)));
    }
    rows.push_back(at::cat(heads, 1).mm(layer.weight("o").t()));
  }
  const at::Tensor expected = at::stack(rows), y = layer(x, test::sequence(2, 5));
  CHECK(difference(y, expected) < 1e-12);
  std::vector<at::Tensor> inputs = {x};
  for (const auto& parameter : layer.context.store->parameters())
    inputs.push_back(parameter.tensor);
  const auto actual = test::gradients(y, inputs),
             expected_grads = test::gradients(expected, inputs);
  for (size_t i = 0; i < inputs.size(); ++i)
    CHECK(difference(actual[i], expected_grads[i]) < 1e-10);
}

TEST_CASE(
    "MHA matches the multi-head attention equations, with shared key heads, norms and partial "
    "rotation") {
  const Layer layer({"mha",
                     {{"heads", int64_t{4}},
                      {"kv_heads", int64_t{2}},
                      {"head_dim", int64_t{8}},
                      {"qk_norm", true},
                      {"rotary_share", 0.5}}});
  const at::Tensor x = normal({1, 6, kHidden}, 51);
  const auto turned = [&](const at::Tensor& head, const std::string& norm) {
    const at::Tensor normed = norm_formula(head, layer.weight(norm), 1e-6);
    return at::cat({rope_formula(normed.narrow(1, 0, 4)), normed.narrow(1, 4, 4)}, 1);
  };
  std::vector<at::Tensor> heads;
  for (int64_t h = 0; h < 4; ++h) {
    const at::Tensor q = x[0].mm(layer.weight("q").narrow(0, h * 8, 8).t());
    const at::Tensor k = x[0].mm(layer.weight("k").narrow(0, h / 2 * 8, 8).t());
    const at::Tensor v = x[0].mm(layer.weight("v").narrow(0, h / 2 * 8, 8).t());
    heads.push_back(causal_softmax(turned(q, "q_norm"), turned(k, "k_norm"), v));
  }
  const at::Tensor expected = at::cat(heads, 1).mm(layer.weight("o").t()).unsqueeze(0);
  CHECK(difference(layer(x, test::sequence(1, 6)), expected) < 1e-12);
}

TEST_CASE("attention is causal: later tokens do not affect earlier results") {
  const Variant& variant = variants()[GENERATE(0, 1, 2, 3, 4)];
  const Layer layer(variant, at::kFloat);
  const at::Tensor x = normal({2, 12, kHidden}, 52, at::kFloat);
  at::Tensor other = x.clone();
  other.narrow(1, 7, 5).copy_(normal({2, 5, kHidden}, 53, at::kFloat));
  const at::Tensor y = layer(x, test::sequence(2, 12)), z = layer(other, test::sequence(2, 12));
  CHECK(at::equal(y.narrow(1, 0, 7), z.narrow(1, 0, 7)));
  CHECK_FALSE(at::equal(y.narrow(1, 7, 5), z.narrow(1, 7, 5)));
}

TEST_CASE("documents in the same row do not affect each other") {
  const Variant& variant = variants()[GENERATE(0, 1, 2, 3, 4)];
  const Layer layer(variant);
  const at::Tensor x = normal({1, 11, kHidden}, 54);
  dsv3::Sequence packed = test::sequence(1, 11);
  packed.document_ids = at::tensor({0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2}, at::kLong).unsqueeze(0);
  packed.positions = dsv3::positions_of(packed.document_ids);
  packed.packing = dsv3::packing_of(packed.document_ids);
  const at::Tensor y = layer(x, packed);
  int64_t begin = 0;
  for (const int64_t length : {4, 6, 1}) {
    const at::Tensor alone = layer(x.narrow(1, begin, length), test::sequence(1, length));
    CHECK(difference(y.narrow(1, begin, length), alone) < 1e-12);
    begin += length;
  }
}

TEST_CASE("results with a cache equal those of one full forward pass") {
  const Variant& variant = variants()[GENERATE(0, 1, 2, 3, 4)];
  const Layer layer(variant);
  const at::NoGradGuard no_grad;
  const at::Tensor x = normal({2, 9, kHidden}, 55);
  const at::Tensor whole = layer(x, test::sequence(2, 9));

  dsv3::KvCache cache(2, layer.attention->cache_values_per_token(), at::kDouble, at::kCPU);
  // Appends counts[row] tokens to each cached row. Returns the difference between their outputs and
  // those of the full forward pass.
  const auto error = [&](const std::vector<int64_t>& counts) {
    std::vector<at::Tensor> tokens, positions, expected_rows;
    for (int64_t row = 0; row < 2; ++row) {
      const int64_t begin = cache.lengths()[row], count = counts[row];
      tokens.push_back(x[row].narrow(0, begin, count));
      positions.push_back(at::arange(begin, begin + count));
      expected_rows.push_back(whole[row].narrow(0, begin, count));
    }
    cache.expect(counts);
    dsv3::Sequence seq;
    seq.cache = &cache;
    seq.positions = at::cat(positions).unsqueeze(0);
    return difference(layer(at::cat(tokens).unsqueeze(0), seq),
                      at::cat(expected_rows).unsqueeze(0));
  };
  CHECK(error({2, 4}) < 1e-12);
  CHECK(error({1, 1}) < 1e-12);
  CHECK(error({3, 2}) < 1e-12);
  // Removes tokens, as after rejected drafts, and appends them again.
  cache.truncate(0, 4);
  cache.truncate(1, 6);
  CHECK(error({2, 0}) < 1e-12);
  CHECK(error({1, 3}) < 1e-12);
}

TEST_CASE(
    "attention results match those of the reference operators, and fp32 and bf16 match float64") {
  const Variant& variant = variants()[GENERATE(0, 1, 2, 3, 4)];
  const at::Tensor x = normal({2, 10, kHidden}, 56);
  const dsv3::Sequence seq = test::sequence(2, 10);
  const at::Tensor wide = Layer(variant)(x, seq);
  const Layer single(variant, at::kFloat), half(variant, at::kBFloat16);
  CHECK(difference(single(x.to(at::kFloat), seq), wide) < 1e-5);
  CHECK(difference(half(x.to(at::kBFloat16), seq), wide) < 5e-2);
  const test::ReferenceOps reference;
  CHECK(difference(Layer(variant)(x, seq), wide) < 1e-12);
}

TEST_CASE("attention gradients match central differences") {
  const Variant& variant = variants()[GENERATE(0, 3)];
  const Layer layer(variant);
  const at::Tensor x = normal({1, 4, kHidden}, 57).requires_grad_();
  std::vector<at::Tensor> inputs = {x};
  for (const auto& parameter : layer.context.store->parameters())
    inputs.push_back(parameter.tensor);
  CHECK(test::gradient_error([&] { return layer(x, test::sequence(1, 4)); }, inputs, 8) < 1e-6);
}

TEST_CASE("mla declares the correct matrices, cache size and FLOPs") {
  const Layer whole({"mla", kMla}),
      split({"mla", with(kMla, {{"muon_split", std::string("per_head")}})});
  std::map<std::string, int64_t> matrices;
  for (const auto& parameter : split.context.store->parameters())
    matrices[parameter.name] = parameter.spec.matrices;
  CHECK(matrices == std::map<std::string, int64_t>{{"layer.q_a.weight", 1},
                                                   {"layer.q_a_norm.weight", 1},
                                                   {"layer.q_b.weight", 3},
                                                   {"layer.kv_a.weight", 1},
                                                   {"layer.kv_a_norm.weight", 1},
                                                   {"layer.kv_b.weight", 3},
                                                   {"layer.o.weight", 1}});
  for (const auto& parameter : whole.context.store->parameters())
    CHECK(parameter.spec.matrices == 1);
  CHECK(whole.attention->cache_values_per_token() == 6 + 4);
}

TEST_CASE("YaRN's softmax scale multiplies the attention scores") {
  dsv3::LayerContext plain = test::context(kHidden), scaled = test::context(kHidden);
  scaled.make_position = [](int64_t dim) {
    return test::make_position("yarn", {{"factor", 1e6}}, dim);
  };
  const auto a = test::make_attention("mla", kMla, plain),
             b = test::make_attention("mla", kMla, scaled);
  test::fill(*plain.store);
  test::fill(*scaled.store);
  // All tokens are at position 0, which RoPE does not rotate. The attention scores therefore differ
  // only by the softmax scale, 2.38^2 = 5.67.
  dsv3::Sequence seq = test::sequence(1, 6);
  seq.positions.zero_();
  const double factor = std::pow(0.1 * std::log(1e6) + 1, 2);
  const at::Tensor x = normal({1, 6, kHidden}, 58);
  const at::Tensor y = b->forward(x, seq);
  CHECK(difference(y, a->forward(x, seq)) > 1e-3);
  const at::NoGradGuard no_grad;
  test::parameter(*plain.store, "layer.q_b.weight").mul_(factor);
  CHECK(difference(y, a->forward(x, seq)) < 1e-12);
}

TEST_CASE("attention layers can be constructed on the meta device") {
  for (const Variant& variant : variants()) {
    const dsv3::LayerContext context = test::context(kHidden, at::kFloat, at::kMeta);
    test::make_attention(variant.name, variant.options, context);
    for (const auto& parameter : context.store->parameters()) CHECK(parameter.tensor.is_meta());
  }
}

TEST_CASE("mha reports an invalid number of heads") {
  const dsv3::LayerContext context = test::context(kHidden);
  CHECK_THROWS_WITH(test::make_attention("mha", {{"heads", int64_t{5}}}, context),
                    Catch::Contains("heads (5) does not divide model.hidden (24)"));
  CHECK_THROWS_WITH(
      test::make_attention("mha", {{"heads", int64_t{4}}, {"kv_heads", int64_t{3}}}, context),
      Catch::Contains("kv_heads (3) does not divide heads (4)"));
}

TEST_CASE("a cache stores rows of different lengths without padding") {
  dsv3::KvCache cache(3, 2, at::kFloat, at::kCPU);
  std::vector<at::Tensor> rows(3);
  const auto add = [&](const std::vector<int64_t>& counts, uint64_t seed) {
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < 3; ++i) {
      parts.push_back(normal({counts[i], 2}, seed * 3 + i, at::kFloat));
      rows[i] = rows[i].defined() ? at::cat({rows[i], parts[i]}) : parts[i];
    }
    cache.expect(counts);
    cache.append(at::cat(parts).unsqueeze(0));
    int64_t total = 0;
    std::vector<at::Tensor> seen;
    for (const at::Tensor& row : rows) total += row.size(0);
    // each_row() calls the function with each row's cached values and the row's slice of q.
    const at::Tensor q = at::cat(parts).unsqueeze(0);
    const at::Tensor joined =
        cache.each_row(q, [&](const at::Tensor& row_q, const at::Tensor& all) {
          seen.push_back(all);
          return row_q * 2;
        });
    CHECK(at::equal(joined, q * 2));
    for (size_t i = 0, j = 0; i < 3; ++i)
      if (counts[i] > 0) CHECK(at::equal(seen.at(j++)[0], rows[i]));
    CHECK(cache.bytes() == total * 2 * 4);
  };
  add({70, 1, 5}, 60);
  CHECK(cache.fresh());
  CHECK(cache.reserved_bytes() == cache.bytes());
  add({1, 3, 0}, 61);
  CHECK_FALSE(cache.fresh());
  cache.truncate(0, 7);
  rows[0] = rows[0].narrow(0, 0, 7);
  add({2, 0, 9}, 62);
  for (int step = 0; step < 150; ++step) add({1, 1, 1}, 70 + step);
  cache.truncate(0, 0);
  CHECK(cache.reserved_bytes() < cache.bytes() + 2 * 64 * 2 * 4);
  CHECK(cache.lengths() == std::vector<int64_t>{0, 154, 164});
  CHECK_THROWS_AS(cache.truncate(1, 155), dsv3::Error);
  CHECK_THROWS_AS(cache.truncate(3, 0), dsv3::Error);
  CHECK_THROWS(cache.append(normal({1, 4, 2}, 63, at::kFloat)));
}
