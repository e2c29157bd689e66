// Compares feed-forward layers with plain loops, and tests expert load balancing.
#include <catch2/catch.hpp>

#include "../../../plugins/feed_forward/moe/routing.h"
#include "layers.h"

using test::difference;
using test::normal;
using test::OptionValues;

namespace {

constexpr int64_t kHidden = 12, kExperts = 8, kInner = 10;

OptionValues moe_options(const OptionValues& more = {}) {
  OptionValues values = {
      {"routed", kExperts}, {"top_k", int64_t{2}}, {"shared", int64_t{1}}, {"hidden", kInner}};
  for (const auto& [key, value] : more) values[key] = value;
  return values;
}

struct Layer {
  dsv3::LayerContext context;
  std::shared_ptr<dsv3::FeedForward> ffn;

  Layer(const std::string& name, const OptionValues& options, at::ScalarType dtype = at::kDouble)
      : context(test::context(kHidden, dtype)),
        ffn(test::make_feed_forward(name, options, context)) {
    test::fill(*context.store);
  }
  at::Tensor operator()(const at::Tensor& x, const dsv3::Sequence& seq) const {
    return ffn->forward(x, seq);
  }
  at::Tensor weight(const std::string& name) const {
    return test::parameter(*context.store, "layer." + name + ".weight");
  }
  at::Tensor bias() const { return test::buffer(*context.store, "layer.router.bias"); }
  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (const auto& parameter : context.store->parameters()) all.push_back(parameter.tensor);
    return all;
  }
};

at::Tensor mlp(const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down) {
  const int64_t inner = gate_up.size(0) / 2;
  return down.mv(at::silu(gate_up.narrow(0, 0, inner).mv(x)) *
                 gate_up.narrow(0, inner, inner).mv(x));
}

// Computes an MoE layer one token and one expert at a time, choosing experts by score + bias.
at::Tensor moe_formula(const Layer& layer, const at::Tensor& x, int64_t top_k, bool normalize,
                       double scale, bool shared) {
  const at::Tensor tokens = x.reshape({-1, kHidden});
  std::vector<at::Tensor> out;
  for (int64_t n = 0; n < tokens.size(0); ++n) {
    const at::Tensor scores = layer.weight("router").to(at::kDouble).mv(tokens[n]).sigmoid();
    const at::Tensor order = (scores.detach() + layer.bias()).argsort(0, /*descending=*/true);
    at::Tensor total = at::zeros({}, scores.options());
    for (int64_t i = 0; i < top_k; ++i) total = total + scores[order[i].item<int64_t>()];
    at::Tensor y = at::zeros({kHidden}, tokens.options());
    for (int64_t i = 0; i < top_k; ++i) {
      const int64_t e = order[i].item<int64_t>();
      const at::Tensor w = (normalize ? scores[e] / total : scores[e]) * scale;
      y = y +
          w * mlp(tokens[n], layer.weight("experts.gate_up")[e], layer.weight("experts.down")[e]);
    }
    if (shared) y = y + mlp(tokens[n], layer.weight("shared.gate_up"), layer.weight("shared.down"));
    out.push_back(y);
  }
  return at::stack(out).view(x.sizes());
}

}  // namespace

TEST_CASE("the swiglu layer computes down(silu(gate x) * up x)") {
  const Layer layer("swiglu", {{"hidden", kInner}});
  const at::Tensor x = normal({2, 3, kHidden}, 70).requires_grad_();
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < 6; ++i)
    rows.push_back(mlp(x.view({6, kHidden})[i], layer.weight("gate_up"), layer.weight("down")));
  const at::Tensor expected = at::stack(rows).view_as(x), y = layer(x, test::sequence(2, 3));
  CHECK(difference(y, expected) < 1e-12);
  const std::vector<at::Tensor> inputs = {x, layer.weight("gate_up"), layer.weight("down")};
  const auto actual = test::gradients(y, inputs),
             expected_grads = test::gradients(expected, inputs);
  for (int i = 0; i < 3; ++i) CHECK(difference(actual[i], expected_grads[i]) < 1e-11);
}

TEST_CASE("swiglu's default width is 8/3 of the model width, rounded up") {
  const Layer layer("swiglu", {});
  CHECK(layer.weight("gate_up").sizes() == at::IntArrayRef({128, kHidden}));
  CHECK(layer.context.store->parameters()[0].spec.matrices == 2);
}

TEST_CASE("moe's output equals the weighted sum of its experts, computed in a loop") {
  const bool normalize = GENERATE(true, false);
  const int64_t shared = GENERATE(1, 0);
  const int64_t top_k = GENERATE(1, 3);
  const Layer layer("moe", moe_options({{"top_k", top_k},
                                        {"normalize", normalize},
                                        {"shared", shared},
                                        {"routed_scale", 2.5},
                                        {"balance_alpha", 0.0}}));
  layer.bias().copy_(normal({kExperts}, 71) * 0.1);
  const at::Tensor x = normal({2, 7, kHidden}, 72).requires_grad_();
  const at::Tensor y = layer(x, test::sequence(2, 7));
  const at::Tensor expected = moe_formula(layer, x, top_k, normalize, 2.5, shared > 0);
  CHECK(difference(y, expected) < 1e-12);
  // With one expert per token and normalised weights, that expert's weight is always 1. The
  // router's gradient is then only rounding error and is not compared.
  std::vector<at::Tensor> inputs = {x};
  for (const at::Tensor& parameter : layer.parameters())
    if (top_k > 1 || !normalize || !parameter.is_same(layer.weight("router")))
      inputs.push_back(parameter);
  const auto actual = test::gradients(y, inputs),
             expected_grads = test::gradients(expected, inputs);
  for (size_t i = 0; i < inputs.size(); ++i)
    CHECK(difference(actual[i], expected_grads[i]) < 1e-10);
  const test::ReferenceOps reference;
  CHECK(difference(layer(x, test::sequence(2, 7)), expected) < 1e-12);
}

TEST_CASE("moe's gradients, without those of the balance loss, match central differences") {
  const Layer layer("moe", moe_options({{"balance_alpha", 0.5}}));
  const at::Tensor x = normal({2, 3, kHidden}, 73).requires_grad_();
  std::vector<at::Tensor> inputs = layer.parameters();
  inputs.push_back(x);
  dsv3::Sequence seq = test::sequence(2, 3);
  // Central differences cannot measure the gradient that the balance loss injects.
  seq.aux_scale = 0;
  CHECK(test::gradient_error([&] { return layer(x, seq); }, inputs, 12) < 1e-6);
}

TEST_CASE(
    "the balance loss is alpha * sum f_i P_i, summed over rows, with gradients for router and "
    "input") {
  const Layer layer("moe", moe_options({{"balance_alpha", 0.3}, {"top_k", int64_t{3}}}));
  const int64_t batch = 2, length = 5, k = 3;
  const at::Tensor x = normal({batch, length, kHidden}, 74).requires_grad_();
  dsv3::Sequence seq = test::sequence(batch, length);
  at::Tensor expected = at::zeros({}, at::kDouble);
  for (int64_t b = 0; b < batch; ++b) {
    const at::Tensor scores = x[b].mm(layer.weight("router").t()).sigmoid();
    for (int64_t i = 0; i < kExperts; ++i) {
      double f = 0;
      at::Tensor p = at::zeros({}, at::kDouble);
      for (int64_t t = 0; t < length; ++t) {
        const at::Tensor order = scores[t].argsort(0, true);
        for (int64_t j = 0; j < k; ++j) f += order[j].item<int64_t>() == i;
        p = p + scores[t][i] / scores[t].sum() / length;
      }
      expected = expected + f * kExperts / (k * length) * p;
    }
  }
  const std::vector<at::Tensor> inputs = {x, layer.weight("router")};
  const at::Tensor zero = at::zeros_like(x);
  // The upstream gradient is zero, so all gradients come from the auxiliary loss.
  const auto actual = test::gradients(layer(x, seq), inputs, zero);
  const auto expected_grads =
      test::gradients(expected * 0.3 * seq.aux_scale, inputs, at::ones({}, at::kDouble));
  for (int i = 0; i < 2; ++i) CHECK(difference(actual[i], expected_grads[i]) < 1e-11);
  seq.training = false;
  const at::Tensor untrained = test::gradients(layer(x, seq), {x}, zero)[0];
  CHECK(untrained.eq(0).all().item<bool>());
}

TEST_CASE("experts without tokens have zero gradients, and one expert may receive all tokens") {
  const Layer layer("moe", moe_options({{"top_k", int64_t{1}}, {"balance_alpha", 0.0}}));
  at::Tensor bias = at::full({kExperts}, -5.0, at::kFloat);
  bias[3] = 5;
  layer.bias().copy_(bias);
  const at::Tensor x = normal({1, 6, kHidden}, 75);
  const at::Tensor y = layer(x, test::sequence(1, 6));
  CHECK(difference(y, moe_formula(layer, x, 1, true, 1, true)) < 1e-12);
  CHECK(at::equal(layer.ffn->step_counts(), at::tensor({0, 0, 0, 6, 0, 0, 0, 0}, at::kLong)));
  const at::Tensor grad = test::gradients(y, {layer.weight("experts.down")})[0];
  for (int64_t e = 0; e < kExperts; ++e) CHECK(grad[e].ne(0).any().item<bool>() == (e == 3));
}

TEST_CASE("tokens in a moe layer do not affect each other") {
  const Layer layer("moe", moe_options(), at::kFloat);
  const at::Tensor x = normal({1, 9, kHidden}, 76, at::kFloat);
  at::Tensor other = x.clone();
  other[0].narrow(0, 4, 5).copy_(normal({5, kHidden}, 77, at::kFloat));
  const at::Tensor y = layer(x, test::sequence(1, 9)), z = layer(other, test::sequence(1, 9));
  // Changing the later tokens changes the number of tokens per expert. The matrix products may then
  // be blocked differently and are not bit-identical.
  CHECK(difference(z[0].narrow(0, 0, 4), y[0].narrow(0, 0, 4)) < 1e-6);
}

TEST_CASE("moe results in fp32 and bf16 match float64") {
  const at::Tensor x = normal({2, 8, kHidden}, 78);
  const dsv3::Sequence seq = test::sequence(2, 8);
  const Layer wide("moe", moe_options()), single("moe", moe_options(), at::kFloat);
  CHECK(difference(single(x.to(at::kFloat), seq), wide(x, seq)) < 1e-5);
  // bf16 rounds x and the weights, so a bias ensures that both models choose the same experts.
  const Layer half("moe", moe_options(), at::kBFloat16);
  const at::Tensor bias = at::arange(kExperts, at::kFloat);
  wide.bias().copy_(bias);
  half.bias().copy_(bias);
  const at::Tensor y = half(x.to(at::kBFloat16), seq);
  CHECK(y.scalar_type() == at::kBFloat16);
  CHECK(difference(y, wide(x, seq)) < 5e-2);
}

TEST_CASE("moe counts tokens per expert in training but not during recomputation") {
  const Layer layer("moe", moe_options());
  const at::Tensor x = normal({2, 4, kHidden}, 79);
  dsv3::Sequence seq = test::sequence(2, 4);
  layer(x, seq);
  CHECK(layer.ffn->step_counts().sum().item<int64_t>() == 2 * 4 * 2);
  seq.recompute = true;
  layer(x, seq);
  seq.recompute = seq.training = false;
  layer(x, seq);
  CHECK(layer.ffn->step_counts().sum().item<int64_t>() == 2 * 4 * 2);
  CHECK(layer.ffn->step_counts().scalar_type() == at::kLong);
}

TEST_CASE("the routing bias rises for experts below the mean load and falls for those above it") {
  const at::Tensor counts = at::tensor({9, 5, 5, 1, 5, 5, 5, 5}, at::kLong);  // mean 5
  const auto moved = [&](const OptionValues& options, double progress) {
    const Layer layer("moe", moe_options(options));
    dsv3::StepEnd end;
    end.counts = counts;
    end.progress = progress;
    layer.ffn->on_step_end(end);
    return layer.bias();
  };
  const at::Tensor sign = at::tensor({-1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0}, at::kFloat);
  CHECK(difference(moved({}, 0.5), sign * 0.001) < 1e-6);
  CHECK(difference(moved({{"bias_rate", 0.1}}, 1.0), sign * 0.1) < 1e-6);
  CHECK(moved({{"bias_rate", 0.0}}, 0.5).eq(0).all().item<bool>());
  CHECK(moved({{"bias_until", 0.9}}, 0.95).eq(0).all().item<bool>());
  CHECK(difference(moved({{"bias_until", 0.9}}, 0.9), sign * 0.001) < 1e-6);
}

TEST_CASE("routing-bias updates are exact for large token counts and can be centred") {
  // The counts differ by one token in 40 million, which fp32 cannot represent.
  const at::Tensor counts = at::tensor({40000001, 39999999, 40000000, 40000000}, at::kLong);
  CHECK(at::equal(moe::bias_change(counts, 1.0, false),
                  at::tensor({-1.0, 1.0, 0.0, 0.0}, at::kDouble)));
  // Before centring, the updates are -1, 1, 1, 1 with a mean of 0.5.
  const at::Tensor skewed = at::tensor({10, 0, 0, 0}, at::kLong);
  CHECK(at::equal(moe::bias_change(skewed, 1.0, true),
                  at::tensor({-1.5, 0.5, 0.5, 0.5}, at::kDouble)));
}

TEST_CASE(
    "expert groups are chosen by the sum of their two best scores, and other groups are excluded") {
  moe::RoutingRule rule;
  rule.top_k = 3;
  rule.groups = 4;
  rule.topk_groups = 2;
  // The two best scores in groups 0 to 3 sum to 1.1, 1.4, 1.0 and 1.5. Group 2 is excluded although
  // it contains the best expert.
  const at::Tensor biased =
      at::tensor({0.6, 0.5, 0.8, 0.6, 0.95, 0.05, 0.7, 0.8}, at::kDouble).unsqueeze(0);
  const auto sorted = [](const at::Tensor& chosen) { return std::get<0>(chosen.sort(1)); };
  CHECK(
      at::equal(sorted(moe::choose(biased, rule)), at::tensor({2, 6, 7}, at::kLong).unsqueeze(0)));
  // If all scores are negative, an excluded group would win if its scores were set to 0.
  const at::Tensor negative = biased - 10;
  CHECK(at::equal(sorted(moe::choose(negative, rule)),
                  at::tensor({2, 6, 7}, at::kLong).unsqueeze(0)));
  // If only the best expert counts, groups 2 and 3 are chosen (0.95 and 0.8). Group 1's scores are
  // lowered because its best score would also be 0.8.
  rule.group_best = 1;
  const at::Tensor lowered = biased - at::tensor({0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0});
  CHECK(
      at::equal(sorted(moe::choose(lowered, rule)), at::tensor({4, 6, 7}, at::kLong).unsqueeze(0)));
  rule.groups = rule.topk_groups = 1;
  CHECK(
      at::equal(sorted(moe::choose(biased, rule)), at::tensor({2, 4, 7}, at::kLong).unsqueeze(0)));
}

TEST_CASE("the routing bias affects which experts are chosen but not their weights") {
  moe::RoutingRule rule;
  rule.top_k = 2;
  rule.scale = 3;
  const at::Tensor logits = at::tensor({2.0, 1.0, 0.0, -1.0}, at::kDouble).unsqueeze(0);
  const at::Tensor bias = at::tensor({-9.0, 0.0, 0.0, 9.0}, at::kFloat);
  const moe::Routing routing = moe::route(logits, bias, rule);
  CHECK(at::equal(routing.chosen, at::tensor({3, 1}, at::kLong).unsqueeze(0)));
  const double a = 1 / (1 + std::exp(1.0)), b = 1 / (1 + std::exp(-1.0));
  CHECK(difference(routing.weights,
                   at::tensor({3 * a / (a + b), 3 * b / (a + b)}, at::kDouble).unsqueeze(0)) <
        1e-12);
}

TEST_CASE("moe declares the role, matrix count and active fraction of each parameter") {
  const Layer layer("moe", moe_options());
  struct Fact {
    dsv3::Role role;
    int64_t matrices;
    double active;
    bool keep_fp32;
    bool operator==(const Fact&) const = default;
  };
  std::map<std::string, Fact> facts;
  for (const auto& p : layer.context.store->parameters())
    facts[p.name] = {p.spec.role, p.spec.matrices, p.spec.active, p.spec.keep_fp32};
  using dsv3::Role;
  CHECK(facts.at("layer.router.weight") == Fact{Role::router, 1, 1, true});
  CHECK(facts.at("layer.experts.gate_up.weight") == Fact{Role::matrix, 2 * kExperts, 0.25, false});
  CHECK(facts.at("layer.experts.down.weight") == Fact{Role::matrix, kExperts, 0.25, false});
  CHECK(facts.at("layer.shared.gate_up.weight") == Fact{Role::matrix, 2, 1, false});
  CHECK(facts.at("layer.shared.down.weight") == Fact{Role::matrix, 1, 1, false});
  CHECK(layer.bias().scalar_type() == at::kFloat);
}

TEST_CASE("feed-forward layers can be constructed on the meta device") {
  const dsv3::LayerContext context = test::context(kHidden, at::kFloat, at::kMeta);
  test::make_feed_forward("moe", moe_options(), context);
  for (const auto& parameter : context.store->parameters()) CHECK(parameter.tensor.is_meta());
}

TEST_CASE("moe rejects conflicting options") {
  CHECK(test::option_conflict("moe", moe_options()) == "");
  CHECK(test::option_conflict("moe", {{"routed", int64_t{6}}, {"groups", int64_t{4}}}) != "");
  CHECK(test::option_conflict("moe", {{"groups", int64_t{2}}, {"topk_groups", int64_t{3}}}) != "");
  CHECK(test::option_conflict(
            "moe", {{"routed", int64_t{8}}, {"groups", int64_t{4}}, {"top_k", int64_t{3}}}) != "");
}

TEST_CASE("layers do not use torch's global random generator") {
  const at::Tensor before = at::detail::getDefaultCPUGenerator().get_state();
  const Layer layer("moe", moe_options());
  layer(normal({2, 4, kHidden}, 80), test::sequence(2, 4)).sum().backward();
  CHECK(at::equal(before, at::detail::getDefaultCPUGenerator().get_state()));
}
