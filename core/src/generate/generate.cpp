// Generates text for batches of prompts. Each slot processes one prompt, and every round runs one
// forward pass for all slots.
#include <cmath>
#include <numeric>

#include "generate/drafter.h"
#include "generate/sampling.h"
#include "support/host.h"

namespace dsv3 {
namespace {

constexpr int64_t kPromptChunk = 4096;  // maximum number of prompt tokens per forward pass

[[noreturn]] void fail(const std::string& text) {
  throw Error(text, ExitCode::usage);
}

void check(const GenerateOptions& options) {
  const Sampling& sampling = options.sampling;
  if (options.tokens < 1) fail("the number of new tokens must be at least 1");
  if (options.batch < 1) fail("batch must be at least 1");
  if (!(sampling.temperature >= 0 && std::isfinite(sampling.temperature)))
    fail("temperature must be a finite number of at least 0");
  if (sampling.top_k < 0) fail("top_k must be at least 1, or 0 for all tokens");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) fail("top_p must be above 0 and at most 1");
  if (!(sampling.repetition_penalty > 0 && std::isfinite(sampling.repetition_penalty)))
    fail("the repetition penalty must be a finite number above 0");
}

void check(const std::vector<Prompt>& prompts, int64_t vocab) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string name =
        prompts.size() > 1 ? "prompt " + std::to_string(i + 1) : std::string("the prompt");
    if (prompts[i].ids.empty()) fail(name + " is empty: pass at least one token to continue");
    for (const int32_t id : prompts[i].ids)
      if (id < 0 || id >= vocab)
        fail(c10::str(name, " contains id ", id, ", which is outside the model's vocabulary, 0 to ",
                      vocab - 1));
  }
}

/// A sequence that is being generated. The main model's cache contains all of the sequence's tokens
/// except the last one and the drafts.
struct Slot {
  size_t prompt;
  Random random;
  std::vector<Distribution> drafts;  // distributions that the drafts were drawn from
  bool done = false;
};

class Run {
 public:
  Run(Model& model, const std::vector<Prompt>& prompts, const GenerateOptions& options)
      : model_(model), prompts_(prompts), options_(options) {
    const int64_t rows = std::min(options.batch, std::ssize(prompts));
    slots_.resize(size_t(rows));
    texts_.resize(size_t(rows));
    result_.texts.resize(prompts.size());
    if (!options.cache) return;
    caches_ = model.make_caches(rows);
    layers_ = caches_.size() - size_t(model.mtp_depth());
    if (options.speculate && model.mtp_depth() > 0) drafter_.emplace(model, caches_, layers_, rows);
    result_.stats.drafts.assign(drafter_ ? drafter_->depth() : 0, 0);
    result_.stats.accepted = result_.stats.drafts;
  }

  Generation run() {
    GenerateStats& stats = result_.stats;
    for (;;) {
      const double start = seconds_now();
      take_prompts();
      const double ready = seconds_now();
      stats.prompt_seconds += ready - start;
      const std::vector<size_t> active = active_slots();
      if (active.empty()) return std::move(result_);
      if (drafter_) draft(active);
      at::Tensor logits = options_.cache ? forward(active) : forward_all(active);
      if (options_.on_logits) options_.on_logits(logits);
      stats.forwards += 1;
      int64_t first = 0;
      for (const size_t s : active) first = choose(s, logits, first);
      note_cache();
      for (const size_t s : active)
        if (slots_[s]->done) release(s);
      stats.seconds += seconds_now() - ready;
    }
  }

 private:
  std::vector<size_t> active_slots() const {
    std::vector<size_t> active;
    for (size_t s = 0; s < slots_.size(); ++s)
      if (slots_[s]) active.push_back(s);
    return active;
  }

  int64_t cached(size_t s) const { return caches_[0].lengths()[s]; }
  /// Length of a sequence, without drafts.
  size_t known(size_t s) const { return texts_[s].size() - slots_[s]->drafts.size(); }
  int64_t remaining(size_t s) const {
    return options_.tokens - int64_t(result_.texts[slots_[s]->prompt].ids.size());
  }

  /// Appends the next `count` uncached tokens of a sequence to `added`.
  void add_tokens(NewTokens& added, size_t s, int64_t count) const {
    const auto begin = texts_[s].begin() + cached(s);
    added.counts[s] = count;
    added.tokens.insert(added.tokens.end(), begin, begin + count);
  }

  /// Assigns a prompt to each free slot and processes all of its tokens except the last.
  void take_prompts() {
    std::vector<size_t> fresh;
    for (size_t s = 0; s < slots_.size() && next_ < prompts_.size(); ++s) {
      if (slots_[s]) continue;
      slots_[s] = Slot{next_, Random(prompts_[next_].seed), {}};
      texts_[s] = prompts_[next_++].ids;
      result_.stats.prompt_tokens += std::ssize(texts_[s]);
      fresh.push_back(s);
    }
    if (options_.cache && !fresh.empty()) read(fresh);
  }

  void read(const std::vector<size_t>& rows) {
    for (;;) {
      NewTokens added{{}, std::vector<int64_t>(texts_.size()), {}};
      for (const size_t s : rows)
        add_tokens(added, s,
                   std::min(std::ssize(texts_[s]) - 1 - cached(s),
                            kPromptChunk - std::ssize(added.tokens)));
      if (added.tokens.empty()) return;
      const Extended out = model_.extend(added, caches_);
      if (drafter_) read_by_drafter(rows, added, out.hidden);
    }
  }

  void read_by_drafter(const std::vector<size_t>& rows, const NewTokens& added,
                       const at::Tensor& hidden) {
    int64_t begin = 0;
    for (size_t s = 0; s < texts_.size(); ++s) {
      if (added.counts[s] > 0) drafter_->add(s, hidden.narrow(0, begin, added.counts[s]));
      begin += added.counts[s];
    }
    // Omit the last token, because the first round starts from it.
    for (size_t k = 0; k < drafter_->depth(); ++k) drafter_->run(k, rows, texts_, 1);
    for (const size_t s : rows) drafter_->settle(s, int64_t(texts_[s].size()), cached(s));
  }

  /// Appends drafts to the sequences: one per module, or fewer where a sequence is about to end.
  void draft(const std::vector<size_t>& active) {
    for (size_t k = 0; k < drafter_->depth(); ++k) {
      std::vector<size_t> rows;
      for (const size_t s : active)
        if (slots_[s]->drafts.size() == k && remaining(s) > int64_t(k) + 1) rows.push_back(s);
      const Drafter::Drafted drafted = drafter_->run(k, rows, texts_);
      for (size_t i = 0; i < drafted.ran.size(); ++i) {
        const size_t s = drafted.ran[i];
        slots_[s]->drafts.push_back(next_of(drafted.logits, int64_t(i), texts_[s]));
        texts_[s].push_back(draw(slots_[s]->drafts.back(), slots_[s]->random));
      }
    }
  }

  /// The distribution of the token after `before`, given one row of logits.
  Distribution next_of(const at::Tensor& logits, int64_t row,
                       std::span<const int32_t> before) const {
    const int64_t all = logits.size(1), ids = options_.ids > 0 ? std::min(options_.ids, all) : all;
    return distribution({logits.const_data_ptr<float>() + row * all, size_t(ids)}, before,
                        options_.sampling);
  }

  /// Returns fp32 logits on the CPU for each sequence's last known token and for its drafts.
  at::Tensor forward(const std::vector<size_t>& active) {
    NewTokens added{{}, std::vector<int64_t>(texts_.size()), {}};
    for (const size_t s : active) add_tokens(added, s, std::ssize(texts_[s]) - cached(s));
    added.logits_at.resize(added.tokens.size());
    std::iota(added.logits_at.begin(), added.logits_at.end(), 0);
    const Extended out = model_.extend(added, caches_);
    hidden_ = out.hidden;
    return out.logits.to(at::kCPU, at::kFloat).contiguous();
  }

  at::Tensor forward_all(const std::vector<size_t>& active) {
    std::vector<at::Tensor> last;
    for (const size_t s : active) {
      const at::Tensor text = at::tensor(at::ArrayRef<int32_t>(texts_[s]), at::kLong).unsqueeze(0);
      last.push_back(model_.logits(text)[0][-1].to(at::kCPU, at::kFloat));
    }
    return at::stack(last);
  }

  /// Verifies a sequence's drafts and adds a token. `first` is the first row for this sequence in
  /// `logits`. Returns the first row for the next sequence.
  int64_t choose(size_t s, const at::Tensor& logits, int64_t first) {
    Slot& slot = *slots_[s];
    std::vector<int32_t>& text = texts_[s];
    const size_t start = known(s), drafts = slot.drafts.size();
    size_t j = 0;
    int32_t id = 0;
    for (;; ++j) {
      const Distribution p =
          next_of(logits, first + int64_t(j), std::span<const int32_t>(text).first(start + j));
      bool accepted = false;
      if (j < drafts) {
        std::tie(id, accepted) = judge(text[start + j], p, slot.drafts[j], slot.random);
        result_.stats.drafts[j] += 1;
        result_.stats.accepted[j] += accepted;
      } else {
        id = draw(p, slot.random);
      }
      if (!emit(slot, id) || !accepted) break;
    }
    text.resize(start + j);
    slot.drafts.clear();
    if (options_.cache) settle(s, first, int64_t(j) + 1);
    text.push_back(id);
    return first + int64_t(drafts) + 1;
  }

  /// Removes rejected drafts from the caches and passes the hidden states of the first `accepted`
  /// tokens in the last forward pass to the drafter. `first` is the sequence's first row in
  /// hidden_.
  void settle(size_t s, int64_t first, int64_t accepted) {
    const int64_t length = int64_t(texts_[s].size());
    for (size_t i = 0; i < layers_; ++i) caches_[i].truncate(int64_t(s), length);
    if (!drafter_) return;
    drafter_->add(s, hidden_.narrow(0, first, accepted));
    drafter_->settle(s, length, length);
  }

  /// Adds an id to the result. Returns false if the id ends the sequence.
  bool emit(Slot& slot, int32_t id) {
    Continuation& text = result_.texts[slot.prompt];
    const std::vector<int32_t>& stops = options_.stop_ids;
    slot.done = true;
    if (std::count(stops.begin(), stops.end(), id) > 0) {
      text.reason = StopReason::stop_id;
      text.stop_id = id;
      return false;
    }
    text.ids.push_back(id);
    result_.stats.new_tokens += 1;
    if (options_.on_token && !options_.on_token(slot.prompt, id)) {
      text.reason = StopReason::callback;
      return false;
    }
    slot.done = int64_t(text.ids.size()) >= options_.tokens;
    return !slot.done;
  }

  void note_cache() {
    if (!options_.cache) return;
    GenerateStats& stats = result_.stats;
    int64_t bytes = 0, mtp_bytes = 0;
    for (size_t i = 0; i < caches_.size(); ++i)
      (i < layers_ ? bytes : mtp_bytes) += caches_[i].bytes();
    if (bytes <= stats.cache_bytes) return;
    const auto& lengths = caches_[0].lengths();
    stats.cache_tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    stats.cache_bytes = bytes;
    stats.mtp_cache_bytes = mtp_bytes;
  }

  void release(size_t s) {
    const size_t prompt = slots_[s]->prompt;
    slots_[s].reset();
    if (options_.on_done) options_.on_done(prompt, result_.texts[prompt]);
    if (!options_.cache) return;
    for (size_t i = 0; i < layers_; ++i) caches_[i].truncate(int64_t(s), 0);
    if (drafter_) drafter_->clear(s);
  }

  Model& model_;
  const std::vector<Prompt>& prompts_;
  const GenerateOptions& options_;
  size_t next_ = 0;                          // first prompt that has no slot yet
  std::vector<std::optional<Slot>> slots_;   // empty = free
  std::vector<std::vector<int32_t>> texts_;  // token ids in each slot: prompt, new ids, drafts
  std::vector<KvCache> caches_;              // one row per slot; MTP modules last
  size_t layers_ = 0;                        // without MTP modules
  std::optional<Drafter> drafter_;
  at::Tensor hidden_;  // hidden states of all tokens in the last forward pass, for the drafter
  Generation result_;
};

}  // namespace

Generation generate(Model& model, const std::vector<Prompt>& prompts,
                    const GenerateOptions& options) {
  check(options);
  check(prompts, model.vocab());
  return Run(model, prompts, options).run();
}

}  // namespace dsv3
