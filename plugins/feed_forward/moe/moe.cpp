// Mixture of experts: every token uses the shared expert and its top_k routed experts.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <dsv3/sdk/exchange_rows.h>
#include <dsv3/sdk/expert_rows.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/nn.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>

#include "dispatch.h"
#include "routing.h"

namespace {

struct MoeOptions {
  int64_t routed = 16;
  int64_t top_k = 2;
  int64_t shared = 1;
  int64_t hidden = 384;
  int64_t groups = 1;
  int64_t topk_groups = 1;
  std::string group_score = "top2_sum";
  bool normalize = true;
  double routed_scale = 1;
  double bias_rate = 1e-3;
  std::string bias_update = "sign";
  double bias_until = 1;
  double balance_alpha = 1e-4;
  int64_t expert_parallel = 1;

  static void describe(dsv3::OptionSchema<MoeOptions>& s);
};

std::string conflict(const MoeOptions& o) {
  if (o.routed % o.groups != 0) return "routed must be a multiple of groups";
  if (o.topk_groups > o.groups) return "topk_groups must be at most groups";
  if (o.top_k > o.topk_groups * (o.routed / o.groups))
    return "top_k must be at most the number of experts in topk_groups expert groups";
  if (o.routed % o.expert_parallel != 0) return "expert_parallel must divide routed";
  return "";
}

void MoeOptions::describe(dsv3::OptionSchema<MoeOptions>& s) {
  s.add("routed", &MoeOptions::routed, "number of routed experts").min(1).max(1 << 14);
  s.add("top_k", &MoeOptions::top_k, "number of routed experts per token").min(1).max(1 << 16);
  s.add("shared", &MoeOptions::shared,
        "number of shared experts, which every token uses, built as one expert of width shared * "
        "hidden; 0 = none")
      .min(0)
      .max(1 << 10);
  s.add("hidden", &MoeOptions::hidden, "inner width of each expert").min(1).max(1 << 20);
  s.add("groups", &MoeOptions::groups, "number of expert groups; 1 = no group-limited routing")
      .min(1)
      .max(1 << 16);
  s.add("topk_groups", &MoeOptions::topk_groups,
        "number of expert groups to which each token may be routed")
      .min(1)
      .max(1 << 16);
  s.add("group_score", &MoeOptions::group_score,
        "score of an expert group: top2_sum = sum of its two highest expert scores (DeepSeek-V3), "
        "max = its highest expert score (DeepSeek-V2)")
      .choices({"top2_sum", "max"})
      .convention();
  s.add("normalize", &MoeOptions::normalize, "divide a token's expert weights by their sum");
  s.add("routed_scale", &MoeOptions::routed_scale,
        "factor applied to the weights of routed experts; DeepSeek-V3 uses 2.5")
      .min(0);
  s.add("bias_rate", &MoeOptions::bias_rate,
        "routing-bias update speed, added or subtracted in each step; 0 disables the bias")
      .min(0);
  s.add("bias_update", &MoeOptions::bias_update,
        "routing-bias update: sign = plus or minus bias_rate, as in DeepSeek-V3; centered = the "
        "same, minus its mean over the experts, as in torchtitan")
      .choices({"sign", "centered"})
      .convention();
  s.add("bias_until", &MoeOptions::bias_until,
        "fraction of the training steps after which the routing bias stays constant; DeepSeek-V3 "
        "froze it near the end")
      .min(0)
      .max(1);
  s.add("balance_alpha", &MoeOptions::balance_alpha,
        "weight of the sequence-wise load-balancing loss; 0 disables it")
      .min(0);
  s.add("expert_parallel", &MoeOptions::expert_parallel,
        "number of consecutive ranks over which the routed experts are divided; tokens are sent to "
        "the ranks of their experts")
      .min(1)
      .max(1 << 14)
      .execution();
  s.metric("moe/load_max/<layer>", "", "tokens of the layer's busiest expert / mean over experts");
  s.metric("moe/max_violation", "",
           "largest load_max - 1 over the layers (MaxVio, arXiv 2408.15664)");
  s.metric("moe/dead_experts", "experts", "experts of all layers that received no token");
  s.metric("moe/entropy", "",
           "mean entropy of a token's normalized expert scores / its maximum, log(routed)");
  s.metric("moe/margin", "",
           "mean difference between the lowest chosen and the highest other expert score, "
           "including the routing bias");
  s.metric("moe/bias_range", "", "largest minus smallest routing bias, maximum over the layers");
  s.metric("moe/bias_change", "",
           "largest change of a routing bias in the step, maximum over the layers");
  s.check(conflict);
}

class Moe final : public dsv3::FeedForward {
 public:
  using Options = MoeOptions;
  Moe(const MoeOptions& options, const dsv3::LayerContext& context);

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override;
  at::Tensor step_counts() override { return counts_; }
  void on_step_end(const dsv3::StepEnd& end) override;

 private:
  at::Tensor routed(const at::Tensor& tokens, const moe::Routing& routing,
                    const dsv3::ExpertRows& rows) const;
  /// Like routed(), with the experts of all ranks of `group_`.
  at::Tensor routed_over_ranks(const at::Tensor& tokens, const moe::Routing& routing,
                               const dsv3::ExpertRows& rows) const;
  /// Applies this rank's experts to `x` [N, D], whose rows are sorted by expert.
  at::Tensor experts(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& ends) const;

  MoeOptions o_;
  moe::RoutingRule rule_;
  at::Tensor router_;  // [E, D], fp32 for every compute dtype
  at::Tensor bias_;    // [E] fp32, affects only which experts are chosen
  std::shared_ptr<dsv3::Communicator>
      group_;           // over which experts are divided; null = they are not
  at::Tensor gate_up_;  // [E, 2F, D]; this rank's experts if they are divided
  at::Tensor down_;     // [E, D, F]; same
  at::Tensor counts_;   // int64 [E], tokens per expert since the last step
  dsv3::Linear shared_gate_up_, shared_down_;
};

Moe::Moe(const MoeOptions& options, const dsv3::LayerContext& context)
    : FeedForward(context), o_(options), rule_{options.top_k,
                                               options.groups,
                                               options.topk_groups,
                                               options.normalize,
                                               options.routed_scale,
                                               options.group_score == "top2_sum" ? 2 : 1} {
  const int64_t width = context.dims.hidden;
  dsv3::ParamSpec router;
  router.role = dsv3::Role::router;
  router.keep_fp32 = true;
  router_ = parameter("router.weight", {o_.routed, width}, router);
  bias_ = buffer("router.bias", {o_.routed}, at::kFloat, dsv3::Init::zeros());

  dsv3::ParamSpec experts;
  experts.active = static_cast<double>(o_.top_k) / static_cast<double>(o_.routed);
  group_ = dsv3::rank_group_of(context, "expert_parallel", o_.expert_parallel);
  if (group_) {
    experts.shards = group_->size();
    experts.shard = group_->rank();
  }
  const int64_t own = o_.routed / experts.shards;
  experts.matrices = 2 * own;  // per expert: gate stacked above up
  gate_up_ = parameter("experts.gate_up.weight", {own, 2 * o_.hidden, width}, experts);
  experts.matrices = own;
  down_ = parameter("experts.down.weight", {own, width, o_.hidden}, experts);

  if (o_.shared > 0) {
    const int64_t inner = o_.shared * o_.hidden;
    dsv3::ParamSpec stacked;
    stacked.matrices = 2;
    shared_gate_up_ = dsv3::Linear(*this, "shared.gate_up", width, 2 * inner, stacked);
    shared_down_ = dsv3::Linear(*this, "shared.down", inner, width);
  }
  counts_ = at::zeros({o_.routed}, at::TensorOptions().dtype(at::kLong).device(context.device));
}

// Multiplies by the routing weights between the two GEMMs, where rows are narrowest.
at::Tensor Moe::experts(const at::Tensor& x, const at::Tensor& weights,
                        const at::Tensor& ends) const {
  const at::Tensor gate_up = dsv3::grouped_linear(x, gate_up_, ends);
  return dsv3::grouped_linear(dsv3::swiglu(gate_up, weights), down_, ends);
}

at::Tensor Moe::routed(const at::Tensor& tokens, const moe::Routing& routing,
                       const dsv3::ExpertRows& rows) const {
  if (group_) return routed_over_ranks(tokens, routing, rows);
  const at::Tensor weights = routing.weights.flatten().index_select(0, rows.source);
  return dsv3::sum_rows(experts(dsv3::gather_rows(tokens, rows), weights, rows.ends), rows);
}

at::Tensor Moe::routed_over_ranks(const at::Tensor& tokens, const moe::Routing& routing,
                                  const dsv3::ExpertRows& rows) const {
  const moe::Dispatch dispatch = moe::dispatch_of(rows.counts, *group_);
  const auto send = [&](const at::Tensor& x) {
    return dsv3::exchange_rows(x, dispatch.sent, dispatch.received, group_);
  };
  const at::Tensor weights = routing.weights.flatten().index_select(0, rows.source);
  const at::Tensor received = send(dsv3::gather_rows(tokens, rows));
  // Received rows are sorted by rank and then by expert. The experts need them sorted by expert.
  const dsv3::ExpertRows by_expert = dsv3::sort_by_expert(dispatch.experts, gate_up_.size(0));
  const at::Tensor y = experts(dsv3::gather_rows(received, by_expert),
                               send(weights).index_select(0, by_expert.source), by_expert.ends);
  return dsv3::sum_rows(
      dsv3::exchange_rows(dsv3::sum_rows(y, by_expert), dispatch.received, dispatch.sent, group_),
      rows);
}

at::Tensor Moe::forward(const at::Tensor& x, const dsv3::Sequence& seq) {
  const at::Tensor tokens = x.reshape({-1, x.size(-1)});
  const at::ScalarType math = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor logits = at::matmul(tokens.to(math), router_.to(math).t());
  const moe::Routing routing = moe::route(logits, bias_, rule_);
  const dsv3::ExpertRows rows = dsv3::sort_by_expert(routing.chosen, o_.routed);
  if (seq.training && !seq.recompute) counts_.add_(rows.counts);
  if (seq.metrics.wanted()) moe::record(seq.metrics, routing, bias_, rule_);

  at::Tensor y = routed(tokens, routing, rows);
  if (o_.shared > 0) y = y + shared_down_(dsv3::swiglu(shared_gate_up_(tokens)));
  y = y.view(x.sizes());
  if (seq.training && o_.balance_alpha > 0)
    y = dsv3::add_loss(y, moe::balance_loss(routing, x.size(0)) * o_.balance_alpha, seq.aux_scale);
  return y;
}

void Moe::on_step_end(const dsv3::StepEnd& end) {
  const at::NoGradGuard no_grad;
  const double rate = end.progress > o_.bias_until ? 0 : o_.bias_rate;
  if (rate == 0 && !end.metrics.wanted()) return;
  const at::Tensor change = moe::bias_change(end.counts, rate, o_.bias_update == "centered");
  if (end.metrics.wanted()) moe::record(end.metrics, end.counts, bias_, change, context().layer);
  if (rate != 0) bias_.add_(change);
}

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.feed_forward<Moe>("moe", "Mixture of shared and routed experts (DeepSeek-V3)");
}
