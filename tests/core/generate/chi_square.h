// Chi-square test of observed counts against probabilities. Seeds are fixed, so tests are never
// flaky. With a random seed, correct code would exceed the bound with a probability below 1e-6.
// Wrong code exceeds it by a wide margin.
#pragma once

#include <cmath>
#include <map>

#include <catch2/catch.hpp>

namespace dsv3::test {

/// Checks that Pearson's statistic is below its mean plus 6 standard deviations (df + 6 sqrt(2 df)
/// + 12, where the last term allows for the heavier tail at small df). Merges outcomes with an
/// expected count below 5.
template <class Outcome>
void check_counts(const std::map<Outcome, int64_t>& counts,
                  const std::map<Outcome, double>& probabilities, int64_t total) {
  double statistic = 0, rare_expected = 0, rare_seen = 0;
  int64_t cells = 0, seen = 0;
  const auto add = [&](double expected, double observed) {
    statistic += (observed - expected) * (observed - expected) / expected;
    ++cells;
  };
  for (const auto& [outcome, probability] : probabilities) {
    const auto found = counts.find(outcome);
    const double observed = found == counts.end() ? 0 : double(found->second);
    const double expected = probability * double(total);
    seen += int64_t(observed);
    if (expected < 5) {
      rare_expected += expected;
      rare_seen += observed;
    } else {
      add(expected, observed);
    }
  }
  CHECK(seen == total);  // no outcome with probability 0 occurred
  if (rare_expected >= 5) add(rare_expected, rare_seen);
  REQUIRE(cells > 1);
  const double df = double(cells - 1);
  CHECK(statistic < df + 6 * std::sqrt(2 * df) + 12);
}

}  // namespace dsv3::test
