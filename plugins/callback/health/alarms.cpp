#include "alarms.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <optional>

namespace health {
namespace {

using Values = std::map<std::string, double>;

/// The metrics of a logged step, and values that rules remember from earlier ones.
struct Step {
  const Values& metrics;
  Values& memory;
  const Options& options;

  /// NaN if the step has no such metric. Comparisons with NaN are false, so rules stay silent.
  double value(const std::string& name) const {
    const auto found = metrics.find(name);
    return found == metrics.end() ? NAN : found->second;
  }
  /// Returns the metrics "<prefix><layer>" by layer.
  Values by_layer(const std::string& prefix) const {
    Values values;
    for (auto at = metrics.lower_bound(prefix);
         at != metrics.end() && at->first.starts_with(prefix); ++at)
      values.emplace(at->first.substr(prefix.size()), at->second);
    return values;
  }
};

/// Returns the layer with the largest value and that value, or {"", NaN}.
std::pair<std::string, double> largest(const Values& values) {
  std::pair<std::string, double> best{"", NAN};
  for (const auto& [layer, value] : values)
    if (!(value <= best.second) && !std::isnan(value)) best = {layer, value};
  return best;
}

// Each rule describes the sign that it sees, or returns "" if it sees none.

std::string no_updates(const Step& step) {
  const Values updates = step.by_layer("health/update_rms/");
  return !updates.empty() && largest(updates).second == 0 ? "health/update_rms is 0 in all layers"
                                                          : "";
}

std::string large_updates(const Step& step) {
  Values ratios;
  for (const auto& [layer, update] : step.by_layer("health/update_rms/"))
    ratios[layer] = update / step.value("health/weight_rms/" + layer);
  const auto [layer, ratio] = largest(ratios);
  if (!(ratio > step.options.update_ratio)) return "";
  return fmt::format(
      "health/update_rms/{0} is {1:.3g} times health/weight_rms/{0}, above "
      "update_ratio: {2:g}",
      layer, ratio, step.options.update_ratio);
}

std::string large_logits(const Step& step) {
  const double logit = step.value("attention/max_logit");
  if (!(logit > step.options.max_logit)) return "";
  return fmt::format("attention/max_logit is {:.4g}, above max_logit: {:g}", logit,
                     step.options.max_logit);
}

std::string uneven_rows(const Step& step) {
  const auto [layer, ratio] = largest(step.by_layer("health/block_ratio/"));
  if (!(ratio > step.options.block_ratio)) return "";
  return fmt::format("health/block_ratio/{} is {:.3g}, above block_ratio: {:g}", layer, ratio,
                     step.options.block_ratio);
}

std::string constant_bias(const Step& step) {
  const double change = step.value("moe/bias_change"), load = step.value("moe/max_violation");
  if (!(change == 0 && load > step.options.max_violation)) return "";
  return fmt::format(
      "moe/max_violation is {:.3g}, above max_violation: {:g}, while moe/bias_change is 0", load,
      step.options.max_violation);
}

std::string saturated_router(const Step& step) {
  const double entropy = step.value("moe/entropy"), load = step.value("moe/max_violation");
  if (!(entropy < step.options.entropy && load > step.options.max_violation)) return "";
  return fmt::format(
      "moe/entropy is {:.3g}, below entropy: {:g}, and moe/max_violation is {:.3g}, "
      "above max_violation: {:g}",
      entropy, step.options.entropy, load, step.options.max_violation);
}

std::string dead_experts(const Step& step) {
  const double experts = step.value("moe/dead_experts");
  if (!(experts > 0)) return "";
  const auto [layer, load] = largest(step.by_layer("moe/load_max/"));
  return fmt::format("moe/dead_experts is {:g}, and moe/load_max/{} is {:.3g}", experts, layer,
                     load);
}

std::string zero_gradients(const Step& step) {
  const auto [layer, count] = largest(step.by_layer("health/zero_gradients/"));
  if (!(count > 0)) return "";
  return fmt::format("health/zero_gradients/{} is {:g}, above 0", layer, count);
}

std::string rising_loss(const Step& step) {
  constexpr double kWeight = 0.2;  // of a new value in the moving average
  const double loss = step.value("train/loss");
  if (std::isnan(loss)) return "";
  double& average = step.memory.try_emplace("average loss", loss).first->second;
  average += kWeight * (loss - average);
  double& lowest = step.memory.try_emplace("lowest average loss", average).first->second;
  lowest = std::min(lowest, average);
  if (!(average > lowest + step.options.loss_rise)) return "";
  return fmt::format(
      "the moving average of train/loss is {:.4g}, above its minimum of {:.4g} by more than "
      "loss_rise: {:g}",
      average, lowest, step.options.loss_rise);
}

struct Rule {
  const char* name;
  std::string (*sign)(const Step&);
  int64_t patience;  // multiple of the option `patience`
  const char* cause;
  const char* cure;
};

/// In order of priority: a fault may cause the signs of later rules, but hardly those of earlier
/// ones.
constexpr Rule kRules[] = {
    {"no_updates", no_updates, 1, "the optimizer does not change the weights",
     "raise optimizer.lr, and check that the schedule's factor (train/lr) is not 0"},
    {"learning_rate", large_updates, 1, "the learning rate is too high",
     "lower optimizer.lr of the group that updates this layer, or lengthen schedule.warmup"},
    {"logits", large_logits, 1,
     "the attention logits explode, because the learning rate or the softmax scale is too high",
     "lower optimizer.lr if the logits were small in the first steps; otherwise check the softmax "
     "scale (mscale_all_dim of position: yarn) and model.init.std, or normalize queries and keys "
     "(qk_norm: true of attention: mha)"},
    {"fused", uneven_rows, 1,
     "a matrix that consists of several, such as queries, keys and values, is updated as one, so "
     "that some of them hardly change",
     "declare the number of matrices in the component (ParamSpec::matrices), or assign the "
     "parameter to adamw by a group with `match`"},
    {"bias", constant_bias, 5, "the routing bias that should balance the experts is not updated",
     "set bias_rate: 0.001 and bias_until: 1 in model.feed_forward, or raise balance_alpha if the "
     "balance loss replaces the bias"},
    {"collapse", saturated_router, 1,
     "the router has collapsed: its scores are saturated, and few experts receive most tokens",
     "lower the learning rate of role: router, or raise balance_alpha in model.feed_forward"},
    {"starved", dead_experts, 20, "experts receive no tokens because their load is not balanced",
     "raise bias_rate or balance_alpha in model.feed_forward, or train with more tokens per step"},
    {"dead_layer", zero_gradients, 1,
     "a part of the layer does not affect the loss, or its output is detached",
     "look for settings of 0 (model.init.std, model.mtp.weight), a weight_decay that shrinks "
     "weights to 0, rows too short for an MTP module, or detach() in the layer's component"},
    {"divergence", rising_loss, 1, "the run diverges, most often because of the learning rate",
     "lower optimizer.lr, lengthen schedule.warmup, set train.clip, or check the data"},
};

std::string warning(const Rule& rule, const std::string& sign, int64_t step, int64_t seen) {
  return fmt::format("health: {}. Sign: at step {}, {} ({} logged steps in a row). To do: {}.",
                     rule.cause, step, sign, seen, rule.cure);
}

}  // namespace

std::vector<std::string> Alarms::observe(const dsv3::Event& event) {
  if (event.step <= last_step_) return {};  // a resumed run repeats a step
  last_step_ = event.step;
  const Values metrics(event.metrics.begin(), event.metrics.end());
  std::vector<std::string> warnings;
  active_ = 0;
  bool explained = false;  // by a rule of higher priority
  for (const Rule& rule : kRules) {
    Count& count = counts_[rule.name];
    const int64_t needed = rule.patience * options_.patience;
    const std::string sign = rule.sign({metrics, memory_, options_});
    count.seen = sign.empty() ? 0 : count.seen + 1;
    count.missed = sign.empty() ? count.missed + 1 : 0;
    if (count.missed >= needed) count.gone = true;
    const bool recent =
        count.warned_at >= 0 && event.step - count.warned_at < options_.repeat_every;
    if (count.seen >= needed) {
      ++active_;
      if (!explained && (count.gone || !recent)) {
        count.warned_at = event.step;
        count.gone = false;
        warnings.push_back(warning(rule, sign, event.step, count.seen));
      }
    }
    explained |= count.seen >= needed || recent;
  }
  return warnings;
}

nlohmann::json Alarms::state() const {
  nlohmann::json counts = nlohmann::json::object();
  for (const auto& [rule, count] : counts_)
    counts[rule] = {count.seen, count.missed, count.warned_at, count.gone};
  return {{"active", active_}, {"counts", counts}, {"memory", memory_}, {"last_step", last_step_}};
}

void Alarms::load(const nlohmann::json& state) {
  active_ = state.at("active").get<int64_t>();
  counts_.clear();
  for (const auto& [rule, count] : state.at("counts").items())
    counts_[rule] = {count.at(0).get<int64_t>(), count.at(1).get<int64_t>(),
                     count.at(2).get<int64_t>(), count.at(3).get<bool>()};
  memory_ = state.at("memory").get<Values>();
  last_step_ = state.at("last_step").get<int64_t>();
}

}  // namespace health
