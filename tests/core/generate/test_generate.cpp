#include <set>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>

#include "core/generate/chi_square.h"
#include "core/model/tiny.h"
#include "generate/sampling.h"

namespace dsv3::test {
namespace {

using Ids = std::vector<int32_t>;

std::unique_ptr<Model> model_of(int64_t depth, const std::string& input = "normed",
                                int64_t vocab = tiny_vocab) {
  Experiment experiment = tiny_experiment();
  experiment.mtp.depth = depth;
  experiment.mtp.input = input;
  // float64, so that rounding does not change which token is selected.
  auto model = std::make_unique<Model>(experiment, vocab, tiny_factory(), at::kCPU, at::kDouble);
  model->initialise(3);
  return model;
}

std::vector<Prompt> prompts_of(const std::vector<Ids>& ids) {
  std::vector<Prompt> prompts;
  for (const Ids& text : ids) prompts.push_back({text, 100 + prompts.size()});
  return prompts;
}

const std::vector<Ids> kTexts{{3, 9, 1, 20, 7}, {5}, {11, 2}, {4, 4, 8, 0, 19, 22, 1, 13, 6}, {5}};

std::vector<Ids> ids_of(const Generation& generation) {
  std::vector<Ids> ids;
  for (const Continuation& text : generation.texts) ids.push_back(text.ids);
  return ids;
}

std::vector<float> last_logits(Model& model, const Ids& text) {
  const at::Tensor ids = at::tensor(at::ArrayRef<int32_t>(text), at::kLong).unsqueeze(0);
  const at::Tensor row = model.logits(ids)[0][-1].to(at::kFloat).contiguous();
  return {row.const_data_ptr<float>(), row.const_data_ptr<float>() + row.numel()};
}

/// Returns the expected output of `generate` at temperature 0, computed by full forward passes
/// without a cache.
Ids greedy(Model& model, Ids text, int64_t tokens, const Sampling& sampling) {
  const size_t start = text.size();
  for (int64_t i = 0; i < tokens; ++i)
    text.push_back(distribution(last_logits(model, text), text, sampling).ids[0]);
  return {text.begin() + ptrdiff_t(start), text.end()};
}

TEST_CASE(
    "greedy output matches that of full forward passes, with and without cache and speculation") {
  const int64_t depth = GENERATE(0, 1, 2);
  const auto model = model_of(depth, GENERATE("normed", "raw"));
  GenerateOptions options;
  options.tokens = 20;
  options.sampling = {.temperature = 0, .repetition_penalty = GENERATE(1.0, 1.3)};
  std::vector<Ids> expected;
  for (const Ids& text : kTexts)
    expected.push_back(greedy(*model, text, options.tokens, options.sampling));
  REQUIRE(std::set<Ids>(expected.begin(), expected.end()).size() == 4);
  for (const int64_t batch : {1, 2, 32})
    for (const bool speculate : {false, true}) {
      options.batch = batch;
      options.speculate = speculate;
      const Generation actual = generate(*model, prompts_of(kTexts), options);
      CHECK(ids_of(actual) == expected);
      CHECK(actual.stats.new_tokens == 100);
      CHECK(actual.stats.prompt_tokens == 18);
      CHECK(actual.stats.drafts.size() == size_t(speculate ? depth : 0));
    }
  options.cache = false;
  CHECK(ids_of(generate(*model, prompts_of(kTexts), options)) == expected);
}

TEST_CASE("a continuation does not depend on the other prompts in the batch") {
  const auto model = model_of(2);
  GenerateOptions options;
  options.tokens = 12;
  options.sampling = {.temperature = 1.2, .top_k = 15, .top_p = 0.95, .repetition_penalty = 1.1};
  options.speculate = GENERATE(false, true);
  const std::vector<Prompt> prompts = prompts_of(kTexts);
  std::vector<Ids> alone;
  for (const Prompt& prompt : prompts)
    alone.push_back(generate(*model, {prompt}, options).texts[0].ids);
  CHECK(alone[1] != alone[4]);  // prompts 1 and 4 differ only in their seed
  for (const int64_t batch : {2, 3, 5}) {
    options.batch = batch;
    CHECK(ids_of(generate(*model, prompts, options)) == alone);
  }
  std::vector<Prompt> reversed(prompts.rbegin(), prompts.rend());
  std::vector<Ids> actual = ids_of(generate(*model, reversed, options));
  std::reverse(actual.begin(), actual.end());
  CHECK(actual == alone);
}

/// Computes the exact probability of every continuation with `tokens` token ids.
void continuations(Model& model, const Ids& text, size_t start, size_t tokens,
                   const Sampling& sampling, double chance, std::map<Ids, double>& out) {
  if (text.size() == start + tokens) {
    out[{text.begin() + ptrdiff_t(start), text.end()}] = chance;
    return;
  }
  const Distribution next = distribution(last_logits(model, text), text, sampling);
  for (size_t i = 0; i < next.ids.size(); ++i) {
    Ids longer = text;
    longer.push_back(next.ids[i]);
    continuations(model, longer, start, tokens, sampling, chance * next.probabilities[i], out);
  }
}

TEST_CASE("speculation does not change the output distribution") {
  const int64_t depth = GENERATE(1, 2);
  const auto model = model_of(depth, "normed", 5);
  GenerateOptions options;
  options.sampling =
      GENERATE(Sampling{.temperature = 3, .top_k = 0},
               Sampling{.temperature = 2.5, .top_k = 4, .top_p = 0.9, .repetition_penalty = 1.4});
  options.tokens = 3;
  options.batch = 500;
  options.speculate = true;
  constexpr int64_t total = 3000;
  const Ids prompt{1, 3, 0, 2};
  std::map<Ids, double> expected;
  continuations(*model, prompt, prompt.size(), 3, options.sampling, 1, expected);
  std::vector<Prompt> prompts;
  for (uint64_t seed = 0; seed < total; ++seed) prompts.push_back({prompt, seed});
  const Generation actual = generate(*model, prompts, options);
  std::map<Ids, int64_t> counts;
  for (const Continuation& text : actual.texts) ++counts[text.ids];
  check_counts(counts, expected, total);
  for (int64_t k = 0; k < depth; ++k) {  // some drafts were accepted and some rejected
    CHECK(actual.stats.accepted[size_t(k)] > 100);
    CHECK(actual.stats.drafts[size_t(k)] - actual.stats.accepted[size_t(k)] > 100);
  }
  CHECK(actual.stats.drafts[0] >= total);
  CHECK(actual.stats.forwards < 3 * total / options.batch);
}

TEST_CASE("the cache stores each sequence's tokens without padding") {
  const auto model = model_of(1);
  GenerateOptions options;
  options.tokens = 7;
  options.speculate = GENERATE(false, true);
  const GenerateStats stats = generate(*model, prompts_of(kTexts), options).stats;
  if (options.speculate) {
    CHECK(stats.mtp_cache_bytes > 0);
    CHECK(stats.mtp_cache_bytes <= (18 + 5 * 6) * 24 * 8);
    CHECK(stats.cache_tokens <= 18 + 5 * 6);
  } else {
    CHECK(stats.mtp_cache_bytes == 0);
    CHECK(stats.cache_tokens == 18 + 5 * 6);  // a sequence's last token is never an input
    CHECK(stats.forwards == 7);
  }
  // 2 layers, 12 features each for keys and values, float64
  CHECK(stats.cache_bytes == stats.cache_tokens * 2 * 24 * 8);
}

TEST_CASE("generation ends at a stop id, at the length limit, or when the callback returns false") {
  const auto model = model_of(2);
  GenerateOptions options;
  options.tokens = 9;
  options.sampling.temperature = 0;
  const Ids all = generate(*model, prompts_of({{3, 9, 1}}), options).texts[0].ids;
  REQUIRE(all.size() == 9);
  const size_t place = GENERATE(0, 1, 2, 3, 4, 5);
  const size_t first = size_t(std::find(all.begin(), all.end(), all[place]) - all.begin());
  options.speculate = GENERATE(false, true);

  SECTION("stop id") {
    options.stop_ids = {99, all[place]};
    const Continuation actual = generate(*model, prompts_of({{3, 9, 1}}), options).texts[0];
    CHECK(actual.ids == Ids(all.begin(), all.begin() + ptrdiff_t(first)));
    CHECK(actual.reason == StopReason::stop_id);
    CHECK(actual.stop_id == all[place]);
  }
  SECTION("callback") {
    Ids reported;
    std::vector<size_t> done;
    options.on_token = [&](size_t, int32_t id) {
      reported.push_back(id);
      return reported.size() <= place;
    };
    options.on_done = [&](size_t prompt, const Continuation& text) {
      done.push_back(prompt);
      CHECK(text.ids == reported);
    };
    const Continuation actual = generate(*model, prompts_of({{3, 9, 1}}), options).texts[0];
    CHECK(actual.reason == StopReason::callback);
    CHECK(actual.ids == Ids(all.begin(), all.begin() + ptrdiff_t(place) + 1));
    CHECK(reported == actual.ids);
    CHECK(done == std::vector<size_t>{0});
  }
  SECTION("length") {
    options.tokens = int64_t(place) + 1;
    const Continuation actual = generate(*model, prompts_of({{3, 9, 1}}), options).texts[0];
    CHECK(actual.reason == StopReason::length);
    CHECK(actual.ids == Ids(all.begin(), all.begin() + ptrdiff_t(place) + 1));
  }
}

TEST_CASE("token ids at or above GenerateOptions::ids are never sampled") {
  const auto model = model_of(2);
  GenerateOptions options;
  options.ids = 4;
  options.tokens = 50;
  options.sampling = {.temperature = 5, .top_k = 0};
  options.speculate = GENERATE(false, true);
  const Ids actual = generate(*model, prompts_of({{20, 9}}), options).texts[0].ids;
  CHECK(std::set<int32_t>(actual.begin(), actual.end()) == std::set<int32_t>{0, 1, 2, 3});
}

TEST_CASE("invalid prompts and options are rejected") {
  const auto model = model_of(0);
  const auto rejected = [&](const std::vector<Ids>& prompts, const GenerateOptions& options,
                            const std::string& text) {
    CHECK_THROWS_WITH(generate(*model, prompts_of(prompts), options), Catch::Contains(text));
  };
  rejected({{}}, {}, "the prompt is empty");
  rejected({{1}, {}}, {}, "prompt 2 is empty");
  rejected({{1}, {2, 23}}, {},
           "prompt 2 contains id 23, which is outside the model's vocabulary, 0 to 22");
  rejected({{-1}}, {}, "id -1");
  rejected({{1}}, {.tokens = 0}, "new tokens");
  rejected({{1}}, {.batch = 0}, "batch must");
  rejected({{1}}, {.sampling = {.temperature = -1}}, "temperature");
  rejected({{1}}, {.sampling = {.temperature = NAN}}, "temperature");
  rejected({{1}}, {.sampling = {.top_k = -1}}, "top_k");
  rejected({{1}}, {.sampling = {.top_p = 0}}, "top_p");
  rejected({{1}}, {.sampling = {.top_p = 1.5}}, "top_p");
  rejected({{1}}, {.sampling = {.repetition_penalty = 0}}, "penalty");
  CHECK(generate(*model, {}, {}).texts.empty());
}

}  // namespace
}  // namespace dsv3::test
