// Counts against probabilities. Seeds are fixed, so that a test never flakes; the bound is what
// right code misses with a chance below 1e-6, and wrong code by far.
#pragma once

#include <cmath>
#include <map>

#include <catch2/catch.hpp>

namespace dsv3::test {

/// Pearson's statistic below its mean by 6 standard deviations (df + 6 sqrt(2 df) + 12, the last
/// term for the tail of small df). Outcomes expected less than 5 times are taken together.
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
  CHECK(seen == total);  // nothing that has probability 0
  if (rare_expected >= 5) add(rare_expected, rare_seen);
  REQUIRE(cells > 1);
  const double df = double(cells - 1);
  CHECK(statistic < df + 6 * std::sqrt(2 * df) + 12);
}

}  // namespace dsv3::test
