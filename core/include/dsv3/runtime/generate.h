// Text generation: batches of prompts, sampling, speculative decoding with MTP modules.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <dsv3/runtime/model.h>

namespace dsv3 {

/// How the next token is sampled. Applied in this order: repetition penalty, temperature, top_k,
/// top_p.
struct Sampling {
  double temperature = 0.8;  ///< 0 = always the most likely token
  int64_t top_k = 50;        ///< only the k most likely tokens; 0 = all
  double top_p = 1;          ///< only the most likely tokens that together reach this probability
  /// Divides positive logits of ids that are already in the text, prompt included, and multiplies
  /// negative ones; 1 = no penalty.
  double repetition_penalty = 1;
};

struct Prompt {
  std::vector<int32_t> ids;  ///< at least one
  uint64_t seed = 0;         ///< determines the text, whatever else is in the batch
};

enum class StopReason { length, stop_id, callback };

struct Continuation {
  std::vector<int32_t> ids;
  StopReason reason = StopReason::length;
  int32_t stop_id = -1;  ///< the id that ended it, if one did
};

struct GenerateOptions {
  Sampling sampling;
  int64_t tokens = 64;            ///< at most this many new ones per prompt
  std::vector<int32_t> stop_ids;  ///< end a text and are not part of it
  int64_t ids = 0;                ///< sample only ids below this; 0 = the model's vocabulary
  bool speculate = false;         ///< draft with the model's MTP modules, if it has any
  bool cache = true;              ///< false: recompute the whole text for every token
  int64_t batch = 32;  ///< texts generated at once; a finished one makes room for the next
  /// Called with each new id, in order for each prompt; false ends the text after this id.
  std::function<bool(size_t prompt, int32_t id)> on_token;
  /// Called with each finished text.
  std::function<void(size_t prompt, const Continuation& text)> on_done;
};

struct GenerateStats {
  int64_t prompt_tokens = 0, new_tokens = 0;
  int64_t forwards = 0;           ///< of the main model, without those of prompts
  double prompt_seconds = 0;      ///< processing prompts
  double seconds = 0;             ///< producing new tokens
  int64_t cache_tokens = 0;       ///< largest number in the main layers' caches
  int64_t cache_bytes = 0;        ///< of these tokens: tokens * values * element size, all layers
  int64_t mtp_cache_bytes = 0;    ///< of the MTP modules at the same time
  std::vector<int64_t> drafts;    ///< verified for each MTP depth; all before it were accepted
  std::vector<int64_t> accepted;  ///< of the verified drafts
};

struct Generation {
  std::vector<Continuation> texts;  ///< one per prompt
  GenerateStats stats;
};

/// Continues all `prompts`. Speculation does not change the distribution of the texts (Leviathan et
/// al., arXiv 2211.17192), nor the texts themselves when temperature is 0. Throws dsv3::Error
/// (ExitCode::usage) for an empty prompt, ids outside the vocabulary and invalid options.
Generation generate(Model& model, const std::vector<Prompt>& prompts,
                    const GenerateOptions& options);

}  // namespace dsv3
