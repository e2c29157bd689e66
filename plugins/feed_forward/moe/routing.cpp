#include "routing.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace moe {

at::Tensor choose(const at::Tensor& biased, const RoutingRule& rule) {
  const int64_t experts = biased.size(1);
  at::Tensor allowed = biased;
  if (rule.groups > 1) {
    const int64_t size = experts / rule.groups;
    const at::Tensor grouped = biased.view({-1, rule.groups, size});
    const at::Tensor best = std::get<0>(grouped.topk(std::min(rule.group_best, size), -1));
    const at::Tensor chosen = std::get<1>(best.sum(-1).topk(rule.topk_groups, -1));
    const at::Tensor excluded =
        at::ones({biased.size(0), rule.groups}, biased.options().dtype(at::kBool))
            .scatter(1, chosen, 0);
    // -infinity instead of 0, because biased scores may be negative.
    allowed = grouped.masked_fill(excluded.unsqueeze(-1), -std::numeric_limits<double>::infinity())
                  .view({-1, experts});
  }
  return std::get<1>(allowed.topk(rule.top_k, -1));
}

Routing route(const at::Tensor& logits, const at::Tensor& bias, const RoutingRule& rule) {
  Routing routing;
  routing.scores = logits.sigmoid();
  {
    const at::NoGradGuard no_grad;
    routing.chosen = choose(routing.scores + bias, rule);
  }
  routing.weights = routing.scores.gather(1, routing.chosen);
  if (rule.normalize)
    routing.weights = routing.weights / (routing.weights.sum(-1, /*keepdim=*/true) + 1e-20);
  if (rule.scale != 1) routing.weights = routing.weights * rule.scale;
  return routing;
}

at::Tensor balance_loss(const Routing& routing, int64_t rows) {
  const int64_t experts = routing.scores.size(1), slots = routing.chosen.size(1);
  const int64_t length = routing.scores.size(0) / rows;
  const at::Tensor share = routing.scores / routing.scores.sum(-1, /*keepdim=*/true);
  const at::Tensor mean_share = share.view({rows, length, experts}).mean(1);  // P [B, E]
  const at::Tensor chosen = routing.chosen.view({rows, length * slots});
  const at::Tensor one = at::ones({1, 1}, mean_share.options());
  const at::Tensor counts = at::zeros({rows, experts}, mean_share.options())
                                .scatter_add(1, chosen, one.expand_as(chosen));
  const double per_slot = static_cast<double>(experts) / static_cast<double>(slots * length);
  return (counts * per_slot * mean_share).sum();
}

at::Tensor bias_change(const at::Tensor& counts, double rate, bool centered) {
  const at::Tensor load = counts.to(at::kDouble);
  const at::Tensor change = (load.mean() - load).sign() * rate;
  return centered ? change - change.mean() : change;
}

void record(const dsv3::Metrics& metrics, const Routing& routing, const at::Tensor& bias,
            const RoutingRule& rule) {
  const at::NoGradGuard no_grad;
  const int64_t experts = routing.scores.size(1);
  if (experts == 1) return;
  const at::Tensor share = routing.scores / routing.scores.sum(-1, /*keepdim=*/true);
  metrics.scalar("moe/entropy", at::special_entr(share).sum(-1).mean() / std::log(experts));
  if (rule.top_k >= experts || rule.groups > 1) return;  // no expert competes with the chosen ones
  const at::Tensor best = std::get<0>((routing.scores + bias).topk(rule.top_k + 1, -1));
  metrics.scalar("moe/margin",
                 (best.select(-1, rule.top_k - 1) - best.select(-1, rule.top_k)).mean());
}

void record(const dsv3::Metrics& metrics, const at::Tensor& counts, const at::Tensor& bias,
            const at::Tensor& bias_change, int64_t layer) {
  const at::Tensor load = counts.to(at::kDouble);
  const at::Tensor largest = load.max() / load.mean().clamp_min(1e-12);
  metrics.scalar("moe/load_max/" + std::to_string(layer), largest);
  metrics.scalar("moe/max_violation", largest - 1, dsv3::Reduce::max);
  metrics.scalar("moe/dead_experts", counts.eq(0).sum(), dsv3::Reduce::sum);
  metrics.scalar("moe/bias_range", bias.max() - bias.min(), dsv3::Reduce::max);
  metrics.scalar("moe/bias_change", bias_change.abs().max(), dsv3::Reduce::max);
}

}  // namespace moe
