// Conformance checks for learning-rate schedules.
#include <cmath>

#include <dsv3/sdk/schedule.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

std::string call(int64_t step, int64_t total) {
  return c10::str("factor(", step, ", ", total, ")");
}

}  // namespace

void schedule_checks(const AddCheck& check) {
  check("values", "returns finite, non-negative factors for any run length",
        [](const Subject& subject) {
          const auto schedule = construct<Schedule>(subject);
          const auto valid_factor = [&](int64_t step, int64_t total) {
            const double factor = schedule->factor(step, total);
            require(std::isfinite(factor) && factor >= 0, call(step, total), " is ", factor,
                    step > total ? " (after the run's last step)" : "");
            return factor;
          };
          for (const int64_t total : {1, 2, 10, 1000, 100'000}) {
            double largest = 0;
            for (int64_t step = 1; step <= total; step += 1 + total / 2000) {
              const double factor = valid_factor(step, total);
              require(factor <= 100, call(step, total), " is ", factor,
                      "; learning-rate factors should be around 1 or below");
              largest = std::max(largest, factor);
            }
            require(largest > 0 || total == 1, "every factor of ", total, " steps is 0");
            valid_factor(total + 10, total);
          }
        });
  // A resumed run calls factor() for step k without calling it for earlier steps.
  check("pure", "computes factors independently of earlier calls", [](const Subject& subject) {
    const auto schedule = construct<Schedule>(subject), other = construct<Schedule>(subject);
    std::vector<double> factors;
    for (int64_t step = 1; step <= 50; ++step) factors.push_back(schedule->factor(step, 50));
    for (int64_t step = 50; step >= 1; --step) {
      other->factor(step, 1000);
      const double expected = factors[size_t(step - 1)], actual = other->factor(step, 50);
      require(actual == expected, call(step, 50), " depends on earlier calls: ", actual, " and ",
              expected);
    }
  });
  check("memory", "frees its memory", [](const Subject& subject) {
    require_steady_memory([&] { construct<Schedule>(subject)->factor(3, 10); });
  });
}

}  // namespace dsv3::conformance
