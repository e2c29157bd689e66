// Text generation: batches of prompts, sampling, speculative decoding with MTP modules, and
// incremental detokenization.
#pragma once

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

/// Sampling settings, applied in this order: repetition penalty, temperature, top_k, top_p.
struct Sampling {
  double temperature = 0.8;  ///< 0 = always the most likely token
  int64_t top_k = 50;        ///< sample only from this many of the most likely tokens; 0 = all
  double top_p = 1;  ///< sample from the smallest set of most likely tokens whose probabilities add
                     ///< up to this
  /// Divisor for positive logits, and factor for negative logits, of ids that have already
  /// occurred; 1 = no penalty.
  double repetition_penalty = 1;
};

struct Prompt {
  std::vector<int32_t> ids;  ///< at least one
  uint64_t seed = 0;         ///< sampling seed; the other prompts in the batch do not affect the
                             ///< continuation
};

enum class StopReason { length, stop_id, callback };

struct Continuation {
  std::vector<int32_t> ids;
  StopReason reason = StopReason::length;
  int32_t stop_id = -1;  ///< the stop id that ended the continuation, or -1
};

struct GenerateOptions {
  Sampling sampling;
  int64_t tokens = 64;                 ///< maximum number of new ids per prompt
  std::vector<int32_t> stop_ids = {};  ///< ids that end the continuation and are not part of it
  int64_t ids = 0;                     ///< sample only ids below this bound; 0 = the vocabulary
                                       ///< size
  bool speculate = false;              ///< draft tokens with the model's MTP modules, if any
  bool cache = true;                   ///< false: recompute the whole sequence for every token
  int64_t batch = 32;  ///< number of concurrent prompts; the next prompt starts when one finishes
  /// Called with each new id, in order within a prompt. Return false to stop that prompt's
  /// generation after this id.
  std::function<bool(size_t prompt, int32_t id)> on_token = {};
  /// Called with the logits of each forward pass, fp32 on the host. Ranks that generate together
  /// replace them by those of one rank, so that all sample the same tokens.
  std::function<void(at::Tensor& logits)> on_logits = {};
  /// Called with each continuation when it is finished.
  std::function<void(size_t prompt, const Continuation& text)> on_done = {};
};

struct GenerateStats {
  int64_t prompt_tokens = 0, new_tokens = 0;
  int64_t forwards = 0;         ///< forward passes of the main model, excluding prompts
  double prompt_seconds = 0;    ///< processing prompts
  double seconds = 0;           ///< producing new tokens
  int64_t cache_tokens = 0;     ///< peak number of tokens in each main layer's cache
  int64_t cache_bytes = 0;      ///< size of these tokens in the caches of all main layers, in bytes
  int64_t mtp_cache_bytes = 0;  ///< size of the MTP modules' caches at that peak, in bytes
  /// Number of drafts that were verified, per MTP depth. Drafts after a rejected one are not
  /// verified.
  std::vector<int64_t> drafts;
  std::vector<int64_t> accepted;  ///< number of verified drafts that were accepted, per MTP depth
};

struct Generation {
  std::vector<Continuation> texts;  ///< one per prompt
  GenerateStats stats;
};

/// Continues all `prompts`. Speculative decoding does not change the distribution of the
/// continuations (Leviathan et al., arXiv 2211.17192), nor the continuations themselves when
/// temperature is 0. Throws dsv3::Error (ExitCode::usage) for an empty prompt, invalid ids and
/// invalid options.
Generation generate(Model& model, const std::vector<Prompt>& prompts,
                    const GenerateOptions& options);

/// Incremental detokenization. Returns only complete UTF-8 characters, with U+FFFD in place of
/// invalid bytes, and stops before a stop string.
class TextStream {
 public:
  /// Stores a reference to `tokenizer`. Throws dsv3::Error for an empty stop string.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops);
  /// Adds a token and returns the new text that later tokens cannot change.
  std::string add(int32_t id);
  /// Whether a stop string was found.
  bool stopped() const { return stopped_; }
  /// Returns the remaining text.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace dsv3
