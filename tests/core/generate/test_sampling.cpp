#include <cmath>
#include <map>
#include <numeric>

#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>

#include "core/generate/chi_square.h"
#include "generate/sampling.h"

namespace dsv3::test {
namespace {

std::map<int32_t, double> of(const std::vector<float>& logits, const std::vector<int32_t>& before,
                             const Sampling& sampling) {
  const Distribution result = distribution(logits, before, sampling);
  REQUIRE(result.ids.size() == result.probabilities.size());
  std::map<int32_t, double> probabilities;
  for (size_t i = 0; i < result.ids.size(); ++i)
    probabilities[result.ids[i]] = result.probabilities[i];
  REQUIRE(probabilities.size() == result.ids.size());
  return probabilities;
}

/// Returns the softmax of `scores`, keyed by token id.
std::map<int32_t, double> softmax(const std::map<int32_t, double>& scores) {
  double sum = 0;
  std::map<int32_t, double> result;
  for (const auto& [id, score] : scores) sum += result[id] = std::exp(score);
  for (auto& [id, probability] : result) probability /= sum;
  return result;
}

void check_equal(const std::map<int32_t, double>& actual,
                 const std::map<int32_t, double>& expected) {
  REQUIRE(actual.size() == expected.size());
  for (const auto& [id, probability] : expected) {
    INFO("id " << id);
    REQUIRE(actual.count(id) == 1);
    CHECK(actual.at(id) == Approx(probability).epsilon(1e-9));
  }
}

const std::vector<float> kLogits{1.0f, -2.0f, 3.0f, 0.5f, 2.0f};
const Sampling kPlain{.temperature = 1, .top_k = 0, .top_p = 1, .repetition_penalty = 1};

TEST_CASE("the default sampling distribution is the softmax of the logits") {
  check_equal(of(kLogits, {2}, kPlain), softmax({{0, 1}, {1, -2}, {2, 3}, {3, 0.5}, {4, 2}}));
}

TEST_CASE(
    "the logits are divided by the temperature, and temperature 0 selects the most likely token") {
  Sampling sampling = kPlain;
  sampling.temperature = 0.5;
  check_equal(of(kLogits, {}, sampling), softmax({{0, 2}, {1, -4}, {2, 6}, {3, 1}, {4, 4}}));
  sampling.temperature = 0;
  check_equal(of(kLogits, {}, sampling), {{2, 1}});
  check_equal(of({1, 7, 7}, {}, sampling), {{1, 1}});  // the first of two equal logits is selected
}

TEST_CASE("the repetition penalty applies once per id and affects greedy choices") {
  Sampling sampling = kPlain;
  sampling.repetition_penalty = 2;
  check_equal(of(kLogits, {1, 2, 2, 2}, sampling),
              softmax({{0, 1}, {1, -4}, {2, 1.5}, {3, 0.5}, {4, 2}}));
  sampling.temperature = 0;
  check_equal(of(kLogits, {2}, sampling), {{4, 1}});
}

TEST_CASE("top_k keeps the k most likely tokens") {
  Sampling sampling = kPlain;
  sampling.top_k = 3;
  check_equal(of(kLogits, {}, sampling), softmax({{2, 3}, {4, 2}, {0, 1}}));
  check_equal(of({1, 1, 1, 1}, {}, sampling), softmax({{0, 1}, {1, 1}, {2, 1}}));
  sampling.top_k = 9;
  CHECK(of(kLogits, {}, sampling).size() == 5);
}

TEST_CASE("top_p keeps the most likely tokens until their total probability reaches top_p") {
  Sampling sampling = kPlain;
  // softmax: 0.63, 0.23, 0.09, 0.05, 0.004
  sampling.top_p = 0.6;
  check_equal(of(kLogits, {}, sampling), {{2, 1}});
  sampling.top_p = 0.65;
  check_equal(of(kLogits, {}, sampling), softmax({{2, 3}, {4, 2}}));
  sampling.top_p = 0.9;
  check_equal(of(kLogits, {}, sampling), softmax({{2, 3}, {4, 2}, {0, 1}}));
  sampling.top_p = 1e-9;
  check_equal(of(kLogits, {}, sampling), {{2, 1}});
  // After top_k, the probabilities are renormalised over the k tokens: 0.73, 0.27.
  sampling.top_k = 2;
  sampling.top_p = 0.7;
  check_equal(of(kLogits, {}, sampling), {{2, 1}});
}

TEST_CASE("non-finite logits are rejected") {
  CHECK_THROWS_AS(distribution(std::vector<float>{1, NAN}, {}, kPlain), Error);
  CHECK_THROWS_AS(distribution(std::vector<float>{1, INFINITY}, {}, kPlain), Error);
}

TEST_CASE("sampled token ids follow the distribution and are reproducible for a fixed seed") {
  const Distribution p{{7, 2, 4}, {0.5, 0.2, 0.3}};
  Random random(11), same(11);
  std::map<int32_t, int64_t> counts;
  for (int i = 0; i < 20000; ++i) {
    const int32_t id = draw(p, random);
    REQUIRE(id == draw(p, same));
    ++counts[id];
  }
  check_counts<int32_t>(counts, {{7, 0.5}, {2, 0.2}, {4, 0.3}}, 20000);
}

TEST_CASE(
    "after verification, a draft follows distribution p, whatever distribution q it was drawn "
    "from") {
  const Distribution p{{0, 1, 2, 3}, {0.1, 0.2, 0.3, 0.4}};
  const std::vector<Distribution> drafts{{{0, 1, 2, 3}, {0.4, 0.3, 0.2, 0.1}},
                                         {{3, 2, 1, 0}, {0.4, 0.3, 0.2, 0.1}},
                                         {{5, 2}, {0.5, 0.5}},
                                         {{9}, {1.0}},
                                         {{3}, {1.0}},
                                         {{1, 0}, {0.999, 0.001}}};
  Random random(5);
  for (const Distribution& q : drafts) {
    std::map<int32_t, int64_t> counts;
    int64_t accepted = 0;
    for (int i = 0; i < 20000; ++i) {
      const int32_t draft = draw(q, random);
      const auto [id, yes] = judge(draft, p, q, random);
      if (yes) REQUIRE(id == draft);
      accepted += yes;
      ++counts[id];
    }
    check_counts<int32_t>(counts, {{0, 0.1}, {1, 0.2}, {2, 0.3}, {3, 0.4}}, 20000);
    double overlap = 0;  // the acceptance probability is the sum of min(p, q)
    for (const int32_t id : q.ids) overlap += std::min(p.of(id), q.of(id));
    CHECK(std::abs(double(accepted) / 20000 - overlap) < 0.02);
  }
}

TEST_CASE("greedy drafts are accepted if correct and otherwise replaced with the correct token") {
  Random random(1);
  const Distribution p{{4}, {1}}, wrong{{3}, {1}};
  for (int i = 0; i < 100; ++i) {
    CHECK(judge(4, p, p, random) == std::pair<int32_t, bool>{4, true});
    CHECK(judge(3, p, wrong, random) == std::pair<int32_t, bool>{4, false});
  }
}

}  // namespace
}  // namespace dsv3::test
