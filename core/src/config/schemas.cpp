#include "config/schemas.h"

#include <sstream>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/suggest.h>

#include "config/node.h"

namespace dsv3 {

// Bounds that no experiment needs to exceed, so that nothing absurd is allocated and products of
// sizes cannot overflow. check_length() in config.cpp bounds products.
constexpr double kMaxSize = 1 << 20, kMaxCount = 1 << 30, kMaxTokens = 1e15;
constexpr double kMaxVocab = 1 << 24, kMaxSequence = 1 << 27, kMaxThreads = 1024;

void ModelOptions::describe(OptionSchema<ModelOptions>& s) {
  s.add("hidden", &ModelOptions::hidden, "width of the residual stream")
      .min(1)
      .max(kMaxSize)
      .unit("features");
  s.add("layers", &ModelOptions::layers, "number of decoder blocks, excluding MTP modules")
      .min(1)
      .max(10000)
      .unit("blocks");
  s.add("vocab", &ModelOptions::vocab,
        "number of token ids in the embedding and the head; auto = the tokenizer's vocabulary size")
      .min(1)
      .max(kMaxVocab)
      .word("auto")
      .unit("tokens");
  s.add("tied_head", &ModelOptions::tied_head, "use the embedding's weights in the head");
  s.add("recompute", &ModelOptions::recompute,
        "activation checkpointing: full = save only each block's input and recompute its "
        "activations in the backward pass")
      .choices({"none", "full"});
}

void NormOptions::describe(OptionSchema<NormOptions>& s) {
  s.add("eps", &NormOptions::eps, "constant added to the mean square in RMSNorm").min(0);
  s.add("place", &NormOptions::place,
        "where norms are applied: before each sublayer, after it (before the residual is added), "
        "or both")
      .choices({"pre", "post", "both"})
      .convention();
}

void LossOptions::describe(OptionSchema<LossOptions>& s) {
  s.add("z", &LossOptions::z, "weight of the z-loss log(Z)^2, where Z is the softmax denominator")
      .min(0);
  s.add("chunk", &LossOptions::chunk,
        "number of logit rows in memory at once; auto = chosen by the loss operator")
      .min(1)
      .max(kMaxCount)
      .word("auto")
      .unit("rows");
}

void InitOptions::describe(OptionSchema<InitOptions>& s) {
  s.add("std", &InitOptions::std, "standard deviation of normally distributed initial weights")
      .min(0);
}

void MtpOptions::describe(OptionSchema<MtpOptions>& s) {
  s.add("depth", &MtpOptions::depth, "number of multi-token prediction modules; 0 = off")
      .min(0)
      .max(100)
      .unit("modules");
  s.add("weight", &MtpOptions::weight,
        "weight of the MTP loss, averaged over all prediction depths")
      .min(0);
  s.add("input", &MtpOptions::input,
        "hidden states passed to an MTP module: after (normed) or before (raw) the final norm")
      .choices({"normed", "raw"})
      .convention();
  s.add("concat", &MtpOptions::concat,
        "order in which the inputs of an MTP module's projection are concatenated")
      .choices({"embedding_first", "hidden_first"})
      .convention();
  s.add("denominator", &MtpOptions::denominator,
        "divide each prediction depth's loss by the number of valid targets of the main loss "
        "(main) or of that depth (own)")
      .choices({"main", "own"})
      .convention();
}

void TrainOptions::describe(OptionSchema<TrainOptions>& s) {
  s.add("steps", &TrainOptions::steps,
        "length of the run in optimizer steps; alternative to tokens")
      .min(1)
      .max(kMaxCount)
      .unit("steps");
  s.add("tokens", &TrainOptions::tokens,
        "length of the run in training tokens; alternative to steps")
      .min(1)
      .max(kMaxTokens)
      .unit("tokens");
  s.add("batch", &TrainOptions::batch, "sequences per step, across all ranks")
      .min(1)
      .max(kMaxSize)
      .unit("sequences");
  s.add("micro_batch", &TrainOptions::micro_batch,
        "sequences per forward pass on each rank; auto = all of the rank's sequences")
      .min(1)
      .max(kMaxSize)
      .word("auto")
      .unit("sequences");
  s.add("sequence", &TrainOptions::sequence, "tokens per sequence")
      .min(1)
      .max(kMaxSequence)
      .unit("tokens");
  s.add("clip", &TrainOptions::clip, "maximum gradient norm; 0 = no clipping").min(0);
  s.add("precision", &TrainOptions::precision,
        "compute dtype; auto = bf16 on CUDA and on CPUs with AMX-BF16, fp32 elsewhere")
      .choices({"auto", "fp32", "bf16"});
  s.add("seed", &TrainOptions::seed, "random seed for initial weights and document order").min(0);
  s.add("log_every", &TrainOptions::log_every, "steps between logged metrics")
      .min(1)
      .max(kMaxCount)
      .unit("steps");
  s.add("trace_every", &TrainOptions::trace_every,
        "steps between those whose parts are timed, see docs/tracking.md; 0 = no traces")
      .min(0)
      .max(kMaxCount)
      .unit("steps");
  s.add("threads", &TrainOptions::threads, "intra-op threads; auto = all cores")
      .min(1)
      .max(kMaxThreads)
      .word("auto")
      .unit("threads");
  s.add("device", &TrainOptions::device, "device for training").choices({"auto", "cpu", "cuda"});
  s.add("ops", &TrainOptions::ops,
        "operator implementation: fused, or reference (slower and simpler)")
      .choices({"fused", "reference"});
  s.add("not_finite", &TrainOptions::not_finite,
        "what to do after a step with NaN or infinite gradients")
      .choices({"stop", "skip"});
  s.add("max_skipped", &TrainOptions::max_skipped,
        "with not_finite: skip, the number of skipped updates in a row after which the run fails")
      .min(1)
      .max(kMaxCount)
      .unit("steps");
  s.add("deterministic", &TrainOptions::deterministic,
        "on a GPU, use only deterministic kernels; CPU kernels are always deterministic");
  s.check([](const TrainOptions& o) -> std::string {
    if (!o.micro_batch || o.batch % *o.micro_batch == 0) return "";
    return "batch (" + std::to_string(o.batch) + ") must be a multiple of micro_batch (" +
           std::to_string(*o.micro_batch) + ")";
  });
}

void ValidationOptions::describe(OptionSchema<ValidationOptions>& s) {
  s.add("every", &ValidationOptions::every,
        "steps between validations; 0 = only before the first and after the last step")
      .min(0)
      .max(kMaxCount)
      .unit("steps");
  s.add("batches", &ValidationOptions::batches,
        "number of batches per validation, each with train.batch sequences")
      .min(1)
      .max(kMaxCount)
      .unit("batches");
  s.add("share", &ValidationOptions::share, "fraction of documents in the held-out set")
      .min(0)
      .max(1)
      .unit("fraction");
  s.check([](const ValidationOptions& o) {
    return o.share < 1 ? "" : "share must be below 1, or no documents are left for training";
  });
}

void SamplesOptions::describe(OptionSchema<SamplesOptions>& s) {
  s.add("every", &SamplesOptions::every, "steps between text samples; 0 = off")
      .min(0)
      .max(kMaxCount)
      .unit("steps");
  s.add("prompts", &SamplesOptions::prompts, "prompts to continue");
  s.add("tokens", &SamplesOptions::tokens, "tokens per sample").min(1).max(kMaxSize).unit("tokens");
  s.add("temperature", &SamplesOptions::temperature,
        "sampling temperature; 0 = always the most likely token")
      .min(0);
  s.add("top_k", &SamplesOptions::top_k, "sample from the k most likely tokens; 0 = from all")
      .min(0)
      .max(kMaxVocab)
      .unit("tokens");
}

void CheckpointOptions::describe(OptionSchema<CheckpointOptions>& s) {
  s.add("every", &CheckpointOptions::every, "steps between checkpoints; 0 = only at the end")
      .min(0)
      .max(kMaxCount)
      .unit("steps");
  s.add("keep_best", &CheckpointOptions::keep_best,
        "number of checkpoints with the lowest val/loss to keep, in addition to the last")
      .min(0)
      .max(kMaxSize)
      .unit("checkpoints");
}

namespace config {

void TopOptions::describe(OptionSchema<TopOptions>& s) {
  s.add("name", &TopOptions::name, "experiment name; default: the file's name");
  s.add("output", &TopOptions::output, "folder in which run folders are created");
  s.check([](const TopOptions& o) -> std::string {
    const bool odd = o.name.find_first_not_of(
                         "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                         "0123456789._-") != std::string::npos;
    if (odd || o.name.empty() || o.name.size() > 128 || o.name[0] == '.')
      return "name must consist of 1 to 128 letters, digits, '.', '_' and '-' and must not start "
             "with '.', because it names a folder";
    return "";
  });
}

void StrategyOptions::describe(OptionSchema<StrategyOptions>& s) {
  s.add("timeout", &StrategyOptions::timeout,
        "time after which a rank that waits for another one fails")
      .min(1)
      .max(86'400)
      .unit("seconds");
}

void HubOptions::describe(OptionSchema<HubOptions>& s) {
  s.add("endpoint", &HubOptions::endpoint, "URL of the hub from which data and models are read");
}

void LogOptions::describe(OptionSchema<LogOptions>& s) {
  s.add("level", &LogOptions::level, "minimum level of log messages to show")
      .choices({"debug", "info", "warning", "error"});
  s.add("system_interval", &LogOptions::system_interval,
        "time between samples of system metrics; 0 = no system metrics")
      .min(0)
      .max(86'400)
      .unit("seconds");
}

std::span<const Slot> slots() {
  static const std::vector<Slot> slots = [] {
    std::vector<Slot> rows;
    for (const KindRow& row : kinds())
      if (!row.path.empty()) rows.push_back(row);
    return rows;
  }();
  return slots;
}

const Slot* slot_at(std::string_view path) {
  for (const Slot& slot : slots())
    if (slot.path == path) return &slot;
  const size_t dot = path.rfind('.');
  if (dot == path.npos || !is_index(path.substr(dot + 1))) return nullptr;
  const Slot* slot = slot_at(path.substr(0, dot));
  return slot && slot->list ? slot : nullptr;
}

std::vector<std::string> slot_keys(std::string_view section) {
  std::vector<std::string> keys;
  for (const Slot& slot : slots()) {
    auto [outer, key] = split_last(slot.path);
    if (outer == section) keys.push_back(std::move(key));
  }
  return keys;
}

std::vector<std::string> core_keys(Kind kind) {
  std::vector<std::string> keys{"plugin", "library"};
  for (const KindRow& row : kinds())
    if (row.kind == kind) {
      std::istringstream words{std::string(row.keys)};
      for (std::string word; words >> word;) keys.push_back(word);
    }
  return keys;
}

std::vector<std::string> core_paths_of(const std::string& key) {
  std::vector<std::string> paths;
  for (const auto& [section, schema] : core_sections()) {
    if (schema.find(key)) paths.push_back(join(section, key));
    if (section.ends_with("." + key)) paths.push_back(section);
  }
  for (const Slot& slot : slots())
    if (kind_name(slot.kind) == key) paths.emplace_back(slot.path);
  return paths;
}

std::vector<std::string> slots_near(const std::string& key) {
  std::vector<std::string> kinds;
  for (const Slot& slot : slots()) kinds.emplace_back(kind_name(slot.kind));
  return core_paths_of(nearest(key, kinds));
}

}  // namespace config

const std::vector<std::pair<std::string, Schema>>& core_sections() {
  static const std::vector<std::pair<std::string, Schema>> sections{
      {"", schema_of<config::TopOptions>()},    {"model", schema_of<ModelOptions>()},
      {"model.norm", schema_of<NormOptions>()}, {"model.loss", schema_of<LossOptions>()},
      {"model.init", schema_of<InitOptions>()}, {"model.mtp", schema_of<MtpOptions>()},
      {"train", schema_of<TrainOptions>()},     {"validation", schema_of<ValidationOptions>()},
      {"samples", schema_of<SamplesOptions>()}, {"checkpoint", schema_of<CheckpointOptions>()},
      {"hub", schema_of<config::HubOptions>()}, {"log", schema_of<config::LogOptions>()}};
  return sections;
}

}  // namespace dsv3
