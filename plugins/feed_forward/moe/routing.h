// Which experts a token goes to and with what weight (DeepSeek-V3, arXiv 2412.19437, equations
// 12-20).
#pragma once

#include <ATen/core/Tensor.h>

namespace moe {

/// How experts are chosen.
struct RoutingRule {
  int64_t top_k = 0;
  int64_t groups = 1;       ///< experts come in groups of equal size ...
  int64_t topk_groups = 1;  ///< ... of which a token may use this many
  bool normalize = true;    ///< a token's weights add up to `scale`
  double scale = 1;
  int64_t group_best = 2;  ///< a group's score is the sum of this many best biased scores
};

struct Routing {
  at::Tensor scores;   ///< [N, E] sigmoid of the logits, fp32 or float64
  at::Tensor chosen;   ///< int64 [N, k]
  at::Tensor weights;  ///< [N, k] made of the chosen experts' scores, differentiable
};

/// int64 [N, k]: the experts with the highest `biased` [N, E] scores, out of the groups with the
/// highest sums of `group_best`. Groups that were not kept are out however low the scores of the
/// others are.
at::Tensor choose(const at::Tensor& biased, const RoutingRule& rule);

/// Routes tokens by `logits` [N, E]. `bias` [E] takes part in the choice only.
Routing route(const at::Tensor& logits, const at::Tensor& bias, const RoutingRule& rule);

/// sum over rows and experts of f_i P_i, to be multiplied by alpha: with T tokens a row,
/// f_i = E / (k T) * tokens that chose i, P_i = mean over tokens of score_i / sum_j score_j.
at::Tensor balance_loss(const Routing& routing, int64_t rows);

/// What one step adds to the bias, [E] float64, for `counts` tokens an expert: the rate towards
/// experts below the mean, minus the rate for those above; `centered` takes off its mean.
at::Tensor bias_change(const at::Tensor& counts, double rate, bool centered);

}  // namespace moe
