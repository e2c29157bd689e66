// Computes a model's parameter counts and FLOPs per token, for --dry-run and for the summary at the
// start of a run.
#include <algorithm>

#include <ATen/ATen.h>

#include <dsv3/runtime/model.h>

#include "call/checked.h"

namespace dsv3 {
namespace {

/// Returns the part of the model to which the parameter belongs, as named in the parameter table.
std::string part_of(const Parameter& parameter, int64_t layers) {
  const std::string& name = parameter.name;
  if (parameter.spec.role == Role::embedding) return "embedding";
  if (parameter.spec.role == Role::head) return "head";
  if (name.starts_with("layers.") && std::stoll(name.substr(7)) >= layers) return "mtp";
  if (name.find(".attention.") != std::string::npos) return "attention";
  if (name.find(".feed_forward.") != std::string::npos) return "feed_forward";
  return "norms";
}

int64_t saved_values(const Model& model, const Experiment& experiment) {
  const int64_t hidden = experiment.model.hidden;
  const int64_t sequence = experiment.train.sequence, layers = experiment.model.layers;
  int64_t sum = 0, largest = 0;
  for (size_t i = 0; i < model.attention().size(); ++i) {
    // Adds the inputs of both norms and of both sublayers.
    int64_t block = checked::number(*model.attention()[i], "saved_values_per_token",
                                    &Attention::saved_values_per_token, sequence) +
                    checked::number(*model.feed_forward()[i], "saved_values_per_token",
                                    &FeedForward::saved_values_per_token) +
                    4 * hidden;
    if (int64_t(i) >= layers)
      block += 6 * hidden;  // for two more norms, the concatenated input and the final norm
    sum += block;
    largest = std::max(largest, block);
  }
  if (experiment.model.recompute == "full")
    sum = int64_t(model.attention().size()) * hidden + largest;
  return sum + 2 * hidden * (1 + experiment.mtp.depth);  // final norms' inputs and heads' dx
}

}  // namespace

ModelFigures figures(const Model& model, const Experiment& experiment) {
  ModelFigures result;
  for (const char* name : {"embedding", "attention", "feed_forward", "norms", "head", "mtp"})
    result.parts.push_back({.name = name});
  double multiplied = 0;  // number of weights in the matrix products for one token
  for (const Parameter& parameter : model.store().parameters()) {
    const std::string name = part_of(parameter, experiment.model.layers);
    const int64_t count = parameter.tensor.numel();
    const double active = double(count) * parameter.spec.active;
    for (ModelFigures::Part& part : result.parts) {
      if (part.name != name) continue;
      part.total += count;
      part.active += active;
    }
    result.total += count;
    result.active += active;
    if (name != "embedding" && name != "head" && name != "mtp") {
      result.total_without_embeddings += count;
      result.active_without_embeddings += active;
    }
    const Role role = parameter.spec.role;
    if (role == Role::matrix || role == Role::router || role == Role::head) multiplied += active;
  }
  // Every MTP module also uses the head. A tied head was counted as the embedding above.
  const double head = double(model.vocab()) * double(experiment.model.hidden);
  multiplied += head * double(experiment.mtp.depth + (experiment.model.tied_head ? 1 : 0));

  double attention = 0;
  for (const std::shared_ptr<Attention>& layer : model.attention())
    attention += checked::number(*layer, "attention_flops", &Attention::attention_flops,
                                 experiment.train.sequence);
  result.flops_per_token = 6 * multiplied + 3 * attention;
  result.flops_per_token_causal = 6 * multiplied + 1.5 * attention;
  result.saved_values_per_token = saved_values(model, experiment);
  return result;
}

}  // namespace dsv3
