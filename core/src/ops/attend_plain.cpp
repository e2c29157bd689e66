// Attention in plain LibTorch: the definition that the other implementations are compared with.
#include <limits>

#include <ATen/ATen.h>

#include "ops/attend.h"
#include "ops/kernels.h"

namespace dsv3 {
namespace {

// bool [B or 1, 1, T, S]: whether a query may attend to a key.
at::Tensor allowed(const at::Tensor& q, const at::Tensor& k, const Sequence& seq,
                   std::optional<int64_t> window) {
  const int64_t queries = q.size(1), keys = k.size(1), offset = keys - queries;
  const at::Tensor all = at::ones({1, 1, queries, keys}, q.options().dtype(at::kBool));
  const at::Tensor mask = seq.packing ? seq.mask() : all.tril(offset);
  if (!window) return mask;
  return mask.bitwise_and(all.tril(offset)).bitwise_and(all.triu(offset - *window + 1));
}

// softmax over the keys and, if there is one, the head's sink. scores [B, H, T, S].
at::Tensor softmax(const at::Tensor& scores, const at::Tensor& sinks) {
  if (!sinks.defined()) return scores.softmax(-1);
  const at::Tensor column = sinks.to(scores.scalar_type())
                                .view({1, -1, 1, 1})
                                .expand({scores.size(0), -1, scores.size(2), 1});
  return at::cat({scores, column}, -1).softmax(-1).narrow(-1, 0, scores.size(-1));
}

}  // namespace

at::Tensor attend_plainly(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Sequence& seq, const AttendOptions& options, double scale) {
  const int64_t groups = q.size(2) / k.size(2);
  const at::Tensor keys = k.transpose(1, 2).repeat_interleave(groups, 1),
                   values = v.transpose(1, 2).repeat_interleave(groups, 1);
  const at::ScalarType math = math_type(q.scalar_type());
  at::Tensor scores = at::matmul(q.transpose(1, 2), keys.transpose(2, 3)).to(math) * scale;
  if (options.softcap > 0) scores = (scores / options.softcap).tanh() * options.softcap;
  const at::Tensor weights =
      softmax(scores.masked_fill(allowed(q, k, seq, options.window).bitwise_not(),
                                 -std::numeric_limits<double>::infinity()),
              options.sinks);
  return at::matmul(weights.to(v.scalar_type()), values).transpose(1, 2);
}

}  // namespace dsv3
