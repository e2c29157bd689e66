// Attention with windows, sinks and soft-capped scores in plain LibTorch, for one block of queries
// at a time. Its memory is linear in T, because each block has scores only for the keys in its
// range, and the backward pass computes them again (Dao et al., arXiv 2205.14135).
#include <limits>

#include <ATen/ATen.h>

#include <dsv3/sdk/packing.h>

#include "ops/attend.h"
#include "ops/kernels.h"

namespace dsv3 {
namespace {

constexpr int64_t kBlock = 128;  // queries

// One call of attend_by_blocks(). G query heads share a key head, and N = B * Hk.
struct Attention {
  at::Tensor q;      // [N, G, T, Dk]
  at::Tensor k, v;   // [N, S, Dk], [N, S, Dv]
  at::Tensor sinks;  // [N, G], in the math dtype, or undefined
  VisibleKeys visible;
  double scale, softcap;

  at::ScalarType type() const { return q.scalar_type(); }
  int64_t queries() const { return q.size(2); }
};

// Views and scores of one block of queries. R = G * (number of queries in the block).
struct Block {
  Block(const Attention& attention, int64_t first)
      : attention(attention),
        begin(first),
        count(std::min(kBlock, attention.queries() - first)),
        key_range(attention.visible.range(first, count)),
        q(rows(attention.q)),
        k(keys(attention.k)),
        v(keys(attention.v)) {}

  // This block of a tensor [N, G, T, D], as [N, R, D].
  at::Tensor rows(const at::Tensor& all) const {
    return all.narrow(2, begin, count).reshape({all.size(0), -1, all.size(3)});
  }
  // This block of a tensor [N, G, T], as [N, R, 1].
  at::Tensor numbers(const at::Tensor& all) const { return rows(all.unsqueeze(3)); }
  void set_rows(const at::Tensor& all, const at::Tensor& values) const {
    const at::Tensor target = all.narrow(2, begin, count);
    target.copy_(values.view(target.sizes()));
  }
  // The block's range of a tensor [N, S, D].
  at::Tensor keys(const at::Tensor& all) const {
    return all.narrow(1, key_range.first, key_range.second);
  }

  // Scores before the mask, [N, R, keys].
  at::Tensor scores() const {
    at::Tensor scores = wide_product(q, k.transpose(1, 2), attention.type()).mul_(attention.scale);
    if (attention.softcap > 0) scores.div_(attention.softcap).tanh_().mul_(attention.softcap);
    return scores;
  }
  void hide(const at::Tensor& scores) const {
    const at::Tensor visible =
        attention.visible.block(begin, count, key_range.first, key_range.second);
    // [N, R, keys] -> [B or 1, N * G / B, count, keys]
    scores.view({visible.size(0), -1, count, key_range.second})
        .masked_fill_(visible.bitwise_not(), -std::numeric_limits<double>::infinity());
  }
  // The softmax weights, given the logarithm of each query's sum [N, R, 1]. Overwrites `scores`. A
  // query that sees no key has a sum of 0 and weights of 0.
  at::Tensor weights(const at::Tensor& scores, const at::Tensor& log_sum) const {
    return scores.sub_(log_sum.clamp_min(std::numeric_limits<float>::lowest())).exp_();
  }

  const Attention& attention;
  int64_t begin, count;
  std::pair<int64_t, int64_t> key_range;
  at::Tensor q, k, v;
};

template <class Body>
void each_block(const Attention& attention, const Body& body) {
  for (int64_t begin = 0; begin < attention.queries(); begin += kBlock)
    body(Block(attention, begin));
}

// Returns the result [N, G, T, Dv] and the logarithms of the sums [N, G, T].
std::pair<at::Tensor, at::Tensor> forward_blocks(const Attention& attention) {
  const at::Tensor& q = attention.q;
  const at::Tensor out =
      at::empty({q.size(0), q.size(1), q.size(2), attention.v.size(2)}, q.options());
  const at::Tensor log_sums =
      at::empty(out.sizes().slice(0, 3), q.options().dtype(math_type(attention.type())));
  each_block(attention, [&](const Block& block) {
    const at::Tensor scores = block.scores();
    block.hide(scores);
    at::Tensor log_sum = scores.logsumexp(-1, true);
    if (attention.sinks.defined()) {
      const at::Tensor sinks = attention.sinks.unsqueeze(2).expand(log_sums.sizes());
      log_sum = at::logaddexp(log_sum, block.numbers(sinks));
    }
    block.set_rows(log_sums.unsqueeze(3), log_sum);
    block.set_rows(out, wide_product(block.weights(scores, log_sum), block.v, attention.type()));
  });
  return {out, log_sums};
}

struct Gradients {
  at::Tensor q, k, v, sinks;
};

// With weights p and dp = dout v^T, the gradient of the scores is p * (dp - sum(p * dp)), whose sum
// equals sum(dout * out). A sink is a score with dp = 0.
Gradients backward_blocks(const Attention& attention, const at::Tensor& out,
                          const at::Tensor& log_sums, const at::Tensor& dout) {
  const at::ScalarType math = log_sums.scalar_type(), type = attention.type();
  const at::Tensor means = (dout.to(math) * out).sum(-1);  // [N, G, T]
  Gradients grads{at::empty_like(attention.q),
                  at::zeros_like(attention.k, math),
                  at::zeros_like(attention.v, math),
                  {}};
  each_block(attention, [&](const Block& block) {
    at::Tensor scores = block.scores(), slope;  // slope of softcap * tanh(x / softcap) at x
    if (attention.softcap > 0) slope = 1 - (scores / attention.softcap).square_();
    block.hide(scores);
    const at::Tensor weights = block.weights(scores, block.numbers(log_sums));
    const at::Tensor upstream = block.rows(dout);
    block.keys(grads.v).add_(wide_product(weights.transpose(1, 2), upstream, type));
    at::Tensor dscores = wide_product(upstream, block.v.transpose(1, 2), type)
                             .sub_(block.numbers(means))
                             .mul_(weights)
                             .mul_(attention.scale);
    if (slope.defined()) dscores.mul_(slope);
    block.set_rows(grads.q, wide_product(dscores, block.k, type));
    block.keys(grads.k).add_(wide_product(dscores.transpose(1, 2), block.q, type));
  });
  grads.k = grads.k.to(type);
  grads.v = grads.v.to(type);
  if (attention.sinks.defined())
    grads.sinks = ((attention.sinks.unsqueeze(2) - log_sums).exp_() * means).sum(2).neg();
  return grads;
}

struct BlockwiseAttention : torch::autograd::Function<BlockwiseAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& sinks,
                            const VisibleKeys& visible, double scale, double softcap) {
    const Attention attention{q, k, v, sinks.value_or(at::Tensor()), visible, scale, softcap};
    const auto [out, log_sums] = forward_blocks(attention);
    ctx->save_for_backward(
        {q, k, v, attention.sinks, out, log_sums, visible.first, visible.last, visible.mask});
    ctx->saved_data["keys"] = visible.keys;
    ctx->saved_data["window"] = visible.window;
    ctx->saved_data["causal"] = visible.causal;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["softcap"] = softcap;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const VisibleKeys visible{saved[6],
                              saved[7],
                              saved[8],
                              data["keys"].toInt(),
                              data["window"].toInt(),
                              data["causal"].toBool()};
    const Attention attention{saved[0],
                              saved[1],
                              saved[2],
                              saved[3],
                              visible,
                              data["scale"].toDouble(),
                              data["softcap"].toDouble()};
    const Gradients result = backward_blocks(attention, saved[4], saved[5], grads[0]);
    return {result.q, result.k, result.v, result.sinks, {}, {}, {}};
  }
};

}  // namespace

std::pair<int64_t, int64_t> VisibleKeys::range(int64_t begin, int64_t count) const {
  const int64_t offset = keys - last.size(1);  // index of the first query's own key
  const int64_t first_key = window > 0 ? std::max<int64_t>(0, begin + offset - window + 1) : 0;
  const int64_t end = causal ? begin + count + offset : keys;
  return {first_key, end - first_key};
}

at::Tensor VisibleKeys::block(int64_t begin, int64_t count, int64_t first_key,
                              int64_t key_count) const {
  const at::Tensor index = at::arange(first_key, first_key + key_count, first.options());
  const auto part = [&](const at::Tensor& limits) {
    return limits.narrow(1, begin, count).unsqueeze(2);
  };
  at::Tensor visible = index.ge(part(first))
                           .bitwise_and_(index.le(part(last)))
                           .unsqueeze(1);  // [.., 1, count, keys]
  if (mask.defined())
    visible = visible.bitwise_and(mask.narrow(2, begin, count).narrow(3, first_key, key_count));
  return visible;
}

VisibleKeys VisibleKeys::sample(int64_t row_step, int64_t begin, int64_t step) const {
  VisibleKeys sampled = *this;
  sampled.first = first.slice(0, 0, std::nullopt, row_step).slice(1, begin, std::nullopt, step);
  sampled.last = last.slice(1, begin, std::nullopt, step);
  if (mask.defined())
    sampled.mask = mask.slice(0, 0, std::nullopt, row_step).slice(2, begin, std::nullopt, step);
  return sampled;
}

VisibleKeys visible_keys(const at::Tensor& q, const at::Tensor& k, const Sequence& seq,
                         std::optional<int64_t> window) {
  const int64_t batch = q.size(0), queries = q.size(1), keys = k.size(1);
  const bool documents = seq.packing && seq.packing->boundaries().defined();
  VisibleKeys visible;
  visible.keys = keys;
  visible.window = window.value_or(0);
  visible.causal = window || documents || !seq.packing;
  if (seq.packing && !documents) visible.mask = seq.mask().expand({batch, 1, queries, keys});
  const auto index = q.options().dtype(at::kLong);
  const at::Tensor own = at::arange(keys - queries, keys, index).unsqueeze(0);
  visible.last = visible.causal ? own : at::full({1, queries}, keys - 1, index);
  visible.first = window ? (own - (*window - 1)) : at::zeros({1, queries}, index);
  if (documents) visible.first = at::maximum(visible.first, seq.packing->starts());
  return visible;
}

at::Tensor grouped_queries(const at::Tensor& q, int64_t key_heads) {
  return q.unflatten(2, {key_heads, q.size(2) / key_heads})
      .permute({0, 2, 3, 1, 4})
      .flatten(0, 1)
      .contiguous();
}

at::Tensor flat_keys(const at::Tensor& k) {
  return k.transpose(1, 2).flatten(0, 1).contiguous();
}

at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b, at::ScalarType type) {
  const at::ScalarType math = math_type(type);
  if (a.is_cuda() && type != math) return at::bmm(a.to(type), b.to(type), math);
  return at::bmm(a.to(math), b.to(math));
}

at::Tensor attend_by_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const VisibleKeys& visible, const AttendOptions& options,
                            double scale) {
  const int64_t batch = q.size(0), key_heads = k.size(2), heads = q.size(2);
  std::optional<at::Tensor> sinks;
  if (options.sinks.defined())
    sinks = options.sinks.to(math_type(q.scalar_type()))
                .expand({batch, heads})
                .reshape({batch * key_heads, heads / key_heads});
  const at::Tensor out =
      BlockwiseAttention::apply(grouped_queries(q, key_heads), flat_keys(k), flat_keys(v), sinks,
                                visible, scale, options.softcap);
  return out.view({batch, heads, q.size(1), v.size(3)}).transpose(1, 2);
}

}  // namespace dsv3
