#include <cmath>

#include <catch2/catch.hpp>

#include <dsv3/sdk/schedule.h>

#include "support/built_plugins.h"

namespace dsv3::test {
namespace {

std::shared_ptr<Schedule> schedule(const std::string& name, const OptionValues& options) {
  return make_built<Schedule>(Kind::schedule, name, options);
}

TEST_CASE("every schedule warms up linearly to the full rate") {
  const std::string name = GENERATE("constant", "cosine", "wsd");
  const auto tested = schedule(name, {{"warmup", int64_t(10)}});
  for (int64_t step = 1; step <= 10; ++step)
    CHECK(tested->factor(step, 100) == Approx(double(step) / 10));
  CHECK(tested->factor(11, 100) <= 1);
  CHECK(schedule(name, {})->factor(1, 100) > 0.99);
}

TEST_CASE("learning-rate factors neither jump nor become NaN in a run shorter than the warm-up") {
  const std::string name = GENERATE("constant", "cosine", "wsd");
  const auto tested = schedule(name, {{"warmup", int64_t(100)}});
  CHECK(tested->factor(50, 50) == Approx(0.5));
  CHECK(tested->factor(100, 100) == Approx(1));
  CHECK(std::isfinite(tested->factor(101, 100)));
}

TEST_CASE("problem() reports a warm-up that is longer than the run") {
  const std::string name = GENERATE("constant", "cosine", "wsd");
  const auto tested = schedule(name, {{"warmup", int64_t(100)}});
  CHECK(tested->problem(100).empty());
  CHECK(tested->problem(99) ==
        "warmup (100 steps) is longer than the run (99 steps); shorten it, or raise train.steps or "
        "train.tokens");
}

TEST_CASE("the constant schedule returns a constant factor") {
  const auto tested = schedule("constant", {});
  CHECK(tested->factor(1, 10) == 1);
  CHECK(tested->factor(10, 10) == 1);
}

TEST_CASE("the cosine schedule falls to min_ratio at the last step") {
  const auto tested = schedule("cosine", {{"warmup", int64_t(20)}, {"min_ratio", 0.2}});
  CHECK(tested->factor(60, 100) == Approx(0.6));  // halfway: the mean of 1 and 0.2
  CHECK(tested->factor(40, 100) == Approx(0.2 + 0.8 * (1 + std::sqrt(0.5)) / 2));
  CHECK(tested->factor(100, 100) == Approx(0.2));
  CHECK(tested->factor(1000, 100) == Approx(0.2));
  for (int64_t step = 21; step < 100; ++step)
    CHECK(tested->factor(step + 1, 100) < tested->factor(step, 100));
}

TEST_CASE("the wsd schedule has a plateau and then decays with the configured shape") {
  const auto [shape, half] = GENERATE(
      table<std::string, double>({{"linear", 0.5}, {"cosine", 0.5}, {"sqrt", 1 - std::sqrt(0.5)}}));
  const auto tested = schedule(
      "wsd", {{"warmup", int64_t(10)}, {"decay", 0.4}, {"min_ratio", 0.1}, {"shape", shape}});
  CHECK(tested->factor(11, 100) == 1);
  CHECK(tested->factor(60, 100) == 1);
  CHECK(tested->factor(61, 100) < 1);
  CHECK(tested->factor(80, 100) == Approx(0.1 + 0.9 * half));
  CHECK(tested->factor(100, 100) == Approx(0.1));
  CHECK(tested->factor(200, 100) == Approx(0.1));
}

}  // namespace
}  // namespace dsv3::test
