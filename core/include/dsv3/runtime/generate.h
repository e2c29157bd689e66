// Text from a model: batches of prompts, sampling, speculation with MTP modules.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <dsv3/runtime/model.h>

namespace dsv3 {

/// How the next token is chosen. Applied in this order: repetition penalty, temperature, top_k,
/// top_p.
struct Sampling {
  double temperature = 0.8;  ///< 0 = always the likeliest token
  int64_t top_k = 50;        ///< only the k likeliest; 0 = all
  double top_p = 1;          ///< only the likeliest, until their probabilities reach top_p
  /// Logits of ids that the text already has, prompt included, are divided by it when positive and
  /// multiplied when negative; 1 = none.
  double repetition_penalty = 1;
};

struct Prompt {
  std::vector<int32_t> ids;  ///< at least one
  uint64_t seed = 0;         ///< same seed, same text, whatever else is in the batch
};

enum class StopReason { length, stop_id, callback };

struct Continuation {
  std::vector<int32_t> ids;
  StopReason reason = StopReason::length;
  int32_t stop_id = -1;  ///< the id that ended it, if one did
};

struct GenerateOptions {
  Sampling sampling;
  int64_t tokens = 64;            ///< new ones of a prompt at most
  std::vector<int32_t> stop_ids;  ///< end a text and are no part of it
  int64_t ids = 0;                ///< only ids below it are chosen; 0 = the model's vocabulary
  bool speculate = false;         ///< draft with the model's MTP modules, if it has any
  bool cache = true;              ///< false: every token reads the whole text again
  int64_t batch = 32;             ///< texts at work at once; a finished one makes room for the next
  /// Told of each new id, in order for each prompt; false ends that text behind the id.
  std::function<bool(size_t prompt, int32_t id)> on_token;
  /// Told of each text that is complete.
  std::function<void(size_t prompt, const Continuation& text)> on_done;
};

struct GenerateStats {
  int64_t prompt_tokens = 0, new_tokens = 0;
  int64_t forwards = 0;           ///< of the main model, prompts not counted
  double prompt_seconds = 0;      ///< reading prompts
  double seconds = 0;             ///< producing new tokens
  int64_t cache_tokens = 0;       ///< in the main layers' caches when they were fullest
  int64_t cache_bytes = 0;        ///< that they took: tokens * values * element size, all layers
  int64_t mtp_cache_bytes = 0;    ///< of the MTP modules at that time
  std::vector<int64_t> drafts;    ///< judged of each MTP depth: those before it were accepted
  std::vector<int64_t> accepted;  ///< of these
};

struct Generation {
  std::vector<Continuation> texts;  ///< one a prompt
  GenerateStats stats;
};

/// Continues all `prompts`. With speculation the texts are distributed exactly as without
/// (Leviathan et al., arXiv 2211.17192), and equal when temperature is 0. Throws dsv3::Error
/// (ExitCode::usage) for an empty prompt, ids outside of the vocabulary and senseless options.
Generation generate(Model& model, const std::vector<Prompt>& prompts,
                    const GenerateOptions& options);

}  // namespace dsv3
