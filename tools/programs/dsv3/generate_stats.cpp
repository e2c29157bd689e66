#include "generate_stats.h"

#include <cmath>
#include <cstdio>

#include <ATen/core/Tensor.h>

#include <dsv3/runtime/quantities.h>
#include <dsv3/support/json.h>

namespace {

using dsv3::Json;

/// Number of cached values per token, summed over the main layers.
struct Cached {
  int64_t layers = 0, values = 0;
  double multi_head = 0;  ///< number of values that multi-head attention with the same heads would
                          ///< cache
  int64_t element_bytes = 0;
};

/// Sum of the query, key and value features of all heads, H (Dk + Dv), over all layers: the values
/// per token that multi-head attention would cache.
double head_features(const dsv3::LoadedModel& loaded, const dsv3::ModelFactory& factory) {
  constexpr int64_t kSequence = 64;
  dsv3::Experiment experiment = loaded.experiment;
  experiment.train.sequence = kSequence;
  const dsv3::ModelFigures figures = dsv3::figures(*loaded.model, experiment, factory);
  // The masked half of the scores takes 3 passes of 2 FLOPs for kSequence / 2 keys and each
  // feature.
  return (figures.flops_per_token - figures.flops_per_token_causal) / (3.0 * kSequence);
}

Cached cached_of(const dsv3::LoadedModel& loaded, const dsv3::ModelFactory& factory) {
  const dsv3::Model& model = *loaded.model;
  Cached cached;
  cached.layers = int64_t(model.attention().size()) - model.mtp_depth();
  for (int64_t i = 0; i < cached.layers; ++i) {
    const dsv3::Attention& layer = *model.attention()[size_t(i)];
    cached.values += layer.cache_values_per_token();
  }
  const double share = double(cached.layers) / double(model.attention().size());  // without MTP
  cached.multi_head = std::round(head_features(loaded, factory) * share);
  // A cache has the dtype of the embedding, which is the first parameter in the store.
  cached.element_bytes = int64_t(model.store().parameters().front().tensor.element_size());
  return cached;
}

std::string number(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", value == double(int64_t(value)) ? 0 : 1, value);
  return text;
}

double rate(int64_t count, double per) {
  return per > 0 ? double(count) / per : 0;
}

std::string as_json(const dsv3::GenerateStats& stats, const Cached& cached) {
  Json depths = Json::array();
  for (size_t k = 0; k < stats.drafts.size(); ++k)
    depths.push_back(
        {{"depth", k + 1}, {"drafts", stats.drafts[k]}, {"accepted", stats.accepted[k]}});
  const Json json{
      {"prompt_tokens", stats.prompt_tokens},
      {"prompt_seconds", stats.prompt_seconds},
      {"new_tokens", stats.new_tokens},
      {"seconds", stats.seconds},
      {"tokens_per_s", rate(stats.new_tokens, stats.seconds)},
      {"forwards", stats.forwards},
      {"layers", cached.layers},
      {"cache_values_per_token_per_layer", double(cached.values) / double(cached.layers)},
      {"mha_values_per_token_per_layer", cached.multi_head / double(cached.layers)},
      {"cache_element_bytes", cached.element_bytes},
      {"cache_tokens", stats.cache_tokens},
      {"cache_bytes", stats.cache_bytes},
      {"mtp_cache_bytes", stats.mtp_cache_bytes},
      {"speculation", depths}};
  return Json{{"stats", json}}.dump() + "\n";
}

std::string largest_cache(const dsv3::GenerateStats& stats, const Cached& cached) {
  std::string text = "largest cache: " + std::to_string(stats.cache_tokens) + " tokens";
  if (stats.cache_bytes == stats.cache_tokens * cached.values * cached.element_bytes)
    text += " x " + std::to_string(cached.layers) + " layers x " +
            number(double(cached.values) / double(cached.layers)) + " values x " +
            std::to_string(cached.element_bytes) + " bytes = ";
  else
    text += "; some layers keep only a window: ";
  text += std::to_string(stats.cache_bytes) + " bytes";
  if (!stats.drafts.empty())
    text += ", and " + std::to_string(stats.mtp_cache_bytes) + " bytes for MTP modules";
  return text + "\n";
}

std::string as_text(const dsv3::GenerateStats& stats, const Cached& cached) {
  const double layers = double(cached.layers), values = double(cached.values);
  std::string text =
      "prompts: " + std::to_string(stats.prompt_tokens) + " tokens in " +
      dsv3::format_duration(stats.prompt_seconds) + "\nnew: " + std::to_string(stats.new_tokens) +
      " tokens in " + dsv3::format_duration(stats.seconds) + ", " +
      number(rate(stats.new_tokens, stats.seconds)) + " tokens/s, " +
      std::to_string(stats.forwards) + " forward passes\n" + "cache: " + number(values / layers) +
      " values per token and layer; multi-head attention with the same heads: " +
      number(cached.multi_head / layers) + ", " + number(cached.multi_head / values) +
      " times as many\n";
  if (stats.cache_tokens > 0) text += largest_cache(stats, cached);
  for (size_t k = 0; k < stats.drafts.size(); ++k)
    text += "speculation, depth " + std::to_string(k + 1) + ": " +
            std::to_string(stats.accepted[k]) + " of " + std::to_string(stats.drafts[k]) +
            " drafts accepted (" + number(100 * rate(stats.accepted[k], double(stats.drafts[k]))) +
            " %)\n";
  return text;
}

}  // namespace

std::string describe_stats(const dsv3::GenerateStats& stats, const dsv3::LoadedModel& loaded,
                           const dsv3::ModelFactory& factory, bool json) {
  const Cached cached = cached_of(loaded, factory);
  return json ? as_json(stats, cached) : as_text(stats, cached);
}
