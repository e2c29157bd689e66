// The largest attention score, whose growth precedes a loss spike (Kimi K2, arXiv 2507.20534).
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "ops/attend.h"

namespace dsv3 {

void record_max_logit(const at::Tensor& q, const at::Tensor& k, const VisibleKeys& visible,
                      double scale, const Metrics& metrics) {
  constexpr int64_t kQueries = 64;
  const at::NoGradGuard no_grad;
  const int64_t row_step = (q.size(0) + kQueries - 1) / kQueries;
  const auto rows = [&](const at::Tensor& x) { return x.slice(0, 0, std::nullopt, row_step); };
  const int64_t batch = rows(q).size(0), length = q.size(1);
  const int64_t per_row = std::max<int64_t>(1, kQueries / batch);
  const int64_t step = (length + per_row - 1) / per_row;
  const int64_t begin = (length - 1) % step;  // includes the last query, which sees the most keys

  const at::Tensor queries =
      grouped_queries(rows(q).slice(1, begin, std::nullopt, step), k.size(2)).flatten(1, 2);
  const at::Tensor scores =
      wide_product(queries, flat_keys(rows(k)).transpose(1, 2), q.scalar_type()).mul_(scale);
  const VisibleKeys sampled = visible.sample(row_step, begin, step);
  const int64_t count = sampled.last.size(1);
  const at::Tensor seen = sampled.block(0, count, 0, k.size(1));
  const at::Tensor masked =
      scores.view({batch, q.size(2), count, k.size(1)})
          .masked_fill(seen.bitwise_not(), -std::numeric_limits<double>::infinity());
  metrics.scalar("attention/max_logit", masked.amax(), Reduce::max);
}

}  // namespace dsv3
