// Promises of learning-rate schedules.
#include <cmath>

#include <dsv3/sdk/schedule.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

const int64_t kTotals[] = {1, 2, 10, 1000, 100'000};

std::string at(int64_t step, int64_t total) {
  return "factor(" + std::to_string(step) + ", " + std::to_string(total) + ")";
}

void check_values(const Subject& subject) {
  const auto schedule = make<Schedule>(subject);
  for (const int64_t total : kTotals) {
    double largest = 0;
    for (int64_t step = 1; step <= total; step += 1 + total / 2000) {
      const double factor = schedule->factor(step, total);
      require(std::isfinite(factor) && factor >= 0,
              at(step, total) + " is " + std::to_string(factor));
      require(factor <= 100, at(step, total) + " is " + std::to_string(factor) +
                                 ": a factor on the learning rate should be around 1 or below");
      largest = std::max(largest, factor);
    }
    require(largest > 0 || total == 1, "every factor of " + std::to_string(total) + " steps is 0");
    const double beyond = schedule->factor(total + 10, total);
    require(std::isfinite(beyond) && beyond >= 0,
            at(total + 10, total) + " (a run that was made longer) is " + std::to_string(beyond));
  }
}

// A run that goes on asks for step k without having asked for those before.
void check_pure(const Subject& subject) {
  const auto schedule = make<Schedule>(subject), other = make<Schedule>(subject);
  std::vector<double> factors;
  for (int64_t step = 1; step <= 50; ++step) factors.push_back(schedule->factor(step, 50));
  for (int64_t step = 50; step >= 1; --step) {
    other->factor(step, 1000);
    const double again = other->factor(step, 50);
    require(again == factors[static_cast<size_t>(step - 1)],
            at(step, 50) + " depends on the calls before it: " + std::to_string(again) + " and " +
                std::to_string(factors[static_cast<size_t>(step - 1)]));
  }
}

void check_memory(const Subject& subject) {
  require_steady_memory([&] { make<Schedule>(subject)->factor(3, 10); });
}

}  // namespace

std::vector<Check> schedule_checks() {
  return {{"values", "gives finite factors, not negative, for runs of any length", check_values},
          {"pure", "gives a step's factor without having seen the steps before", check_pure},
          {"memory", "gives its memory back", check_memory}};
}

}  // namespace dsv3::conformance
