// Computes a model's parameter counts and FLOPs per token, for --dry-run and for the summary at the
// start of a run.
#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>

#include "model/measure.h"

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

}  // namespace

ModelFigures figures(const Model& model, const Experiment& experiment,
                     const ModelFactory& factory) {
  ModelFigures result;
  for (const char* name : {"embedding", "attention", "feed_forward", "norms", "head", "mtp"})
    result.parts.push_back({.name = name});
  for (const Parameter& parameter : model.store().parameters()) {
    const std::string name = part_of(parameter, experiment.model.layers);
    const int64_t count = parameter.tensor.numel() * parameter.spec.shards;
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
  }
  try {
    const Flops flops = Measurement(experiment, model.vocab(), factory).flops_per_token();
    result.flops_per_token = flops.all;
    result.flops_per_token_causal = flops.causal;
  } catch (const Error& error) {
    result.flops_unknown = error.what();
  }
  return result;
}

}  // namespace dsv3
