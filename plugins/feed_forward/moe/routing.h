// Chooses each token's experts and their weights (DeepSeek-V3, arXiv 2412.19437, equations 12-20).
#pragma once

#include <dsv3/sdk/metrics.h>

namespace moe {

/// Options that determine how experts are chosen.
struct RoutingRule {
  int64_t top_k = 0;
  int64_t groups = 1;       ///< number of equally sized groups of experts
  int64_t topk_groups = 1;  ///< number of groups to which a token may be routed
  bool normalize = true;    ///< whether a token's weights are scaled to add up to `scale`
  double scale = 1;
  int64_t group_best = 2;  ///< a group's score is the sum of this many of its highest biased scores
};

struct Routing {
  at::Tensor scores;   ///< [N, E] sigmoid of the logits, fp32 or float64
  at::Tensor chosen;   ///< int64 [N, k]
  at::Tensor weights;  ///< [N, k], computed from the chosen experts' scores, differentiable
};

/// Chooses the experts with the highest `biased` [N, E] scores, from the groups with the highest
/// group scores. Returns int64 [N, k].
at::Tensor choose(const at::Tensor& biased, const RoutingRule& rule);

/// Routes tokens by `logits` [N, E]. `bias` [E] affects only which experts are chosen.
Routing route(const at::Tensor& logits, const at::Tensor& bias, const RoutingRule& rule);

/// Load-balancing loss: the sum over rows and experts of f_i P_i, which the caller multiplies by
/// alpha. With T tokens per row, f_i = E / (k T) * tokens that chose i, P_i = mean over tokens of
/// score_i / sum_j score_j.
at::Tensor balance_loss(const Routing& routing, int64_t rows);

/// The routing-bias update for one step, [E] float64, from `counts` tokens per expert: +rate for
/// experts below the mean count, -rate for those above it. `centered` subtracts the mean update.
at::Tensor bias_change(const at::Tensor& counts, double rate, bool centered);

/// Records how decided the router is: moe/entropy and moe/margin.
void record(const dsv3::Metrics& metrics, const Routing& routing, const at::Tensor& bias,
            const RoutingRule& rule);
/// Records a layer's balance in one step, from `counts` tokens per expert: moe/load_max,
/// moe/max_violation, moe/dead_experts, moe/bias_range and moe/bias_change.
void record(const dsv3::Metrics& metrics, const at::Tensor& counts, const at::Tensor& bias,
            const at::Tensor& bias_change, int64_t layer);

}  // namespace moe
