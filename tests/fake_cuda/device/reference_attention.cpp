#include "reference_attention.h"

#include <limits>

#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>

namespace fake_cuda {
namespace {

using at::Tensor;

/// Repeats each key or value head for all query heads that share it.
Tensor repeated(const Tensor& shared, const Tensor& query) {
  return shared.to(at::kFloat).repeat_interleave(query.size(1) / shared.size(1), 1);
}

/// Sums the gradients over the query heads that share a key or value head.
Tensor folded(const Tensor& gradient, const Tensor& shared) {
  const int64_t sharing = gradient.size(1) / shared.size(1);
  return gradient
      .view({shared.size(0), shared.size(1), sharing, gradient.size(2), gradient.size(3)})
      .sum(2)
      .to(shared.scalar_type());
}

Tensor scores(const Attention& a) {
  Tensor scores =
      at::matmul(a.query.to(at::kFloat), repeated(a.key, a.query).transpose(2, 3)) * a.scale;
  if (a.bias.defined()) scores = scores + a.bias.to(at::kFloat);
  if (!a.causal) return scores;
  const int64_t tokens = a.query.size(2), keys = a.key.size(2);
  const int64_t own = a.bottom_right ? keys - tokens : 0;  // index of the first token's own key
  Tensor visible = at::ones({tokens, keys}, at::kBool).tril_(own);
  if (a.left >= 0) visible.triu_(own - a.left);
  return scores.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
}

std::tuple<Tensor, Tensor, Tensor> gradients(const Attention& a, const Tensor& weights,
                                             const Tensor& out, const Tensor& gradient) {
  const Tensor dout = gradient.to(at::kFloat);
  const Tensor dweights = at::matmul(dout, repeated(a.value, a.query).transpose(2, 3));
  const Tensor means = (dout * out.to(at::kFloat)).sum(-1, true);
  const Tensor dscores = weights * (dweights - means) * a.scale;
  const Tensor dquery = at::matmul(dscores, repeated(a.key, a.query)).to(a.query.scalar_type());
  const Tensor dkey = at::matmul(dscores.transpose(2, 3), a.query.to(at::kFloat));
  const Tensor dvalue = at::matmul(weights.transpose(2, 3), dout);
  return {dquery, folded(dkey, a.key), folded(dvalue, a.value)};
}

}  // namespace

std::tuple<Tensor, Tensor> forward(const Attention& a) {
  const Tensor s = scores(a);
  const Tensor out = at::matmul(s.softmax(-1), repeated(a.value, a.query));
  return {out.to(a.query.scalar_type()), s.logsumexp(-1)};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Attention& a, const Tensor& gradient) {
  const Tensor weights = scores(a).softmax(-1);
  return gradients(a, weights, at::matmul(weights, repeated(a.value, a.query)), gradient);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Attention& a, const Tensor& gradient,
                                            const Tensor& out, const Tensor& lse) {
  return gradients(a, (scores(a) - lse.unsqueeze(-1)).exp(), out, gradient);
}

}  // namespace fake_cuda
