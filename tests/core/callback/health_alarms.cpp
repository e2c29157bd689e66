// Rules of the health callback, on made-up metrics.
#include <catch2/catch.hpp>

#include "../../../plugins/callback/health/alarms.cpp"
#include "../../../plugins/callback/health/options.cpp"

using Catch::Matchers::Contains;
using health::Alarms;
using health::Options;

namespace {

using Metrics = std::vector<std::pair<std::string, double>>;

std::vector<std::string> observe(Alarms& alarms, int64_t step, const Metrics& metrics) {
  return alarms.observe({step, step, 0, 0, metrics});
}

/// Returns all warnings of a run that records the same metrics in steps 1 to `steps`.
std::vector<std::string> warnings(const Metrics& metrics, int64_t steps = 60) {
  Alarms alarms{Options()};
  std::vector<std::string> all;
  for (int64_t step = 1; step <= steps; ++step)
    for (const std::string& warning : observe(alarms, step, metrics)) all.push_back(warning);
  return all;
}

std::string only(const std::vector<std::string>& all) {
  REQUIRE(all.size() == 1);
  return all.front();
}

const Metrics kHealthy{{"train/loss", 3},
                       {"health/update_rms/0", 0.004},
                       {"health/weight_rms/0", 0.05},
                       {"health/zero_gradients/0", 0},
                       {"health/block_ratio/0", 1.2},
                       {"attention/max_logit", 12},
                       {"moe/bias_change", 0.001},
                       {"moe/max_violation", 0.8},
                       {"moe/entropy", 0.97},
                       {"moe/dead_experts", 0}};

/// Healthy metrics with one changed.
Metrics with(const std::string& name, double value, Metrics metrics = kHealthy) {
  for (auto& [key, old] : metrics)
    if (key == name) {
      old = value;
      return metrics;
    }
  throw std::logic_error("no metric " + name);
}

}  // namespace

TEST_CASE("healthy metrics raise no alarm") {
  CHECK(warnings(kHealthy).empty());
  CHECK(warnings({}).empty());
  Metrics unknown = kHealthy;
  for (auto& [name, value] : unknown) value = NAN;
  CHECK(warnings(unknown).empty());
}

TEST_CASE("each rule states its sign, its cause and what to change") {
  CHECK_THAT(only(warnings(with("health/update_rms/0", 0.02))),
             Contains("learning rate is too high") &&
                 Contains("at step 3, health/update_rms/0 is 0.4 times health/weight_rms/0, above "
                          "update_ratio: 0.25 (3 logged steps in a row)") &&
                 Contains("optimizer.lr"));
  CHECK_THAT(only(warnings(with("attention/max_logit", 130))),
             Contains("logits") && Contains("is 130, above max_logit: 100") && Contains("qk_norm"));
  CHECK_THAT(only(warnings(with("health/block_ratio/0", 6.4))),
             Contains("consists of several") && Contains("health/block_ratio/0 is 6.4") &&
                 Contains("ParamSpec::matrices"));
  CHECK_THAT(only(warnings(with("health/update_rms/0", 0))),
             Contains("does not change the weights") && Contains("optimizer.lr"));
  CHECK_THAT(only(warnings(with("moe/max_violation", 2.5, with("moe/bias_change", 0)))),
             Contains("bias that should balance the experts is not updated") &&
                 Contains("at step 15, moe/max_violation is 2.5") && Contains("bias_rate"));
  CHECK_THAT(only(warnings(with("health/zero_gradients/0", 2))),
             Contains("does not affect the loss") && Contains("health/zero_gradients/0 is 2"));
  CHECK_THAT(only(warnings(with("moe/dead_experts", 3))),
             Contains("receive no tokens") && Contains("at step 60"));
}

TEST_CASE("a saturated router is an alarm only if the load is unbalanced") {
  const Metrics saturated = with("moe/entropy", 0.1);
  CHECK(warnings(saturated).empty());
  Alarms alarms{Options()};
  std::string warning;
  for (int64_t step = 1; step <= 3; ++step)
    for (const std::string& text : observe(alarms, step, with("moe/max_violation", 3, saturated)))
      warning = text;
  CHECK_THAT(warning, Contains("the router has collapsed") && Contains("moe/entropy is 0.1"));
}

TEST_CASE("a routing bias that changes raises no alarm, however unbalanced the load is") {
  Alarms alarms{Options()};
  for (int64_t step = 1; step <= 100; ++step)
    CHECK(observe(alarms, step, with("moe/max_violation", 3)).empty());
}

TEST_CASE("a loss that rises from its minimum is a divergence") {
  Alarms alarms{Options()};
  for (int64_t step = 1; step <= 20; ++step)
    CHECK(observe(alarms, step, {{"train/loss", 5 - 0.1 * double(step)}}).empty());
  for (int64_t step = 21; step <= 22; ++step)
    CHECK(observe(alarms, step, {{"train/loss", 8}}).empty());
  CHECK_THAT(only(observe(alarms, 23, {{"train/loss", 8}})),
             Contains("diverges") && Contains("the moving average of train/loss is 5.642"));
}

TEST_CASE("a noisy loss is not a divergence") {
  Alarms alarms{Options()};
  for (int64_t step = 1; step <= 200; ++step)
    CHECK(observe(alarms, step, {{"train/loss", 3 + (step % 2 ? 0.8 : -0.8)}}).empty());
}

TEST_CASE("only the first of several causes is named") {
  const Metrics both = with("attention/max_logit", 1e4, with("health/update_rms/0", 0.02));
  CHECK_THAT(only(warnings(both)), Contains("learning rate"));
  // The logits are a consequence of the updates even if these have become smaller.
  Alarms alarms{Options()};
  for (int64_t step = 1; step <= 100; ++step)
    CHECK(observe(alarms, step, step < 6 ? both : with("attention/max_logit", 1e4)).size() ==
          (step == 3 ? 1 : 0));
}

TEST_CASE("an alarm needs consecutive steps") {
  Alarms alarms{Options()};
  const Metrics bad = with("attention/max_logit", 200);
  for (int64_t step = 1; step <= 30; ++step)
    CHECK(observe(alarms, step, step % 3 ? bad : kHealthy).empty());
  CHECK(alarms.active() == 0);
}

TEST_CASE("an alarm is repeated after its sign was absent for long, or has lasted for long") {
  Alarms alarms{Options()};
  const Metrics bad = with("attention/max_logit", 200);
  std::vector<int64_t> warned;
  for (int64_t step = 1; step <= 2500; ++step) {
    const bool healthy = step == 10 || (step >= 20 && step < 23);
    if (!observe(alarms, step, healthy ? kHealthy : bad).empty()) warned.push_back(step);
  }
  CHECK(warned == std::vector<int64_t>{3, 25, 1025, 2025});
  CHECK(alarms.active() == 1);
}

TEST_CASE("a resumed run continues the alarms") {
  const auto metrics = [](int64_t step) {
    Metrics all = with("train/loss", step < 20 ? 4 : 4.6);
    if (step % 7 > 1) all = with("attention/max_logit", 300, all);
    return with("moe/max_violation", step > 3 ? 2 : 1, all);
  };
  for (const int64_t cut : {1, 4, 16, 21}) {
    Alarms straight{Options()}, first{Options()}, second{Options()};
    for (int64_t step = 1; step <= cut; ++step)
      CHECK(observe(first, step, metrics(step)) == observe(straight, step, metrics(step)));
    second.load(nlohmann::json::parse(first.state().dump()));
    CHECK(observe(second, cut, metrics(cut)).empty());  // a repeated step
    for (int64_t step = cut + 1; step <= 40; ++step)
      CHECK(observe(second, step, metrics(step)) == observe(straight, step, metrics(step)));
    CHECK(second.state() == straight.state());
  }
}
