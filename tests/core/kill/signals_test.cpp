// Tests that signals stop a run after the current step with a checkpoint from which it resumes
// bit-identically, wherever in the step they arrive.
#include <csignal>
#include <random>

#include <catch2/catch.hpp>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/support/json.h>

#include "core/kill/children.h"
#include "core/kill/left_behind.h"

namespace {

constexpr int64_t kSteps = 10;  // train.steps of the tiny experiment
constexpr int kPreempted = 75, kInterrupted = 130;

/// An uninterrupted run, and runs that must equal it once they are resumed.
class Runs {
 public:
  Runs() : unbroken_(tiny_.train("unbroken", std::vector<Signal>{})) {
    INFO(unbroken_.output);
    REQUIRE(unbroken_.code == 0);
    expected_.emplace(tiny_.run("unbroken"));
  }
  std::filesystem::path folder() const { return tiny_.run("run"); }
  /// How often an uninterrupted run is at `place`.
  int points(Signal::Place place) const { return unbroken_.points[place]; }

  /// Number of module outputs in a training step.
  int outputs_per_step() const { return points(Signal::training) / int(kSteps); }

  /// Starts a run that receives `signals`.
  Ending start(const std::vector<Signal>& signals) { return tiny_.train("run", signals); }
  /// Resumes the run, compares it with the uninterrupted run, and removes it.
  void require_exact_resume() {
    const Ending last = tiny_.train("run");
    INFO(last.output);
    REQUIRE(last.code == 0);
    REQUIRE(expected_->difference(LeftBehind(folder())) == "");
    REQUIRE(fault_in(folder()) == "");
    std::filesystem::remove_all(folder());
  }

 private:
  TinyExperiment tiny_;
  Ending unbroken_;
  std::optional<LeftBehind> expected_;
};

int64_t newest_checkpoint(const std::filesystem::path& run) {
  const auto newest = dsv3::CheckpointStore(run / "checkpoints", 0).newest();
  return newest ? newest->step : -1;
}

/// Tests that the run ended after the step in which the last signal arrived, or in the validation
/// in which it arrived. A signal during the last step stops the run only if it cuts the last
/// validation short.
void require_stopped(const Ending& ending, const std::filesystem::path& run, int code,
                     Signal::Place place = Signal::training) {
  INFO(ending.output);
  const int64_t stop = ending.steps_at_signal + (place != Signal::evaluation);
  const int64_t step = std::min(stop, kSteps);
  const bool finished = step == kSteps && ending.code == 0;
  REQUIRE_FALSE(ending.killed);
  REQUIRE(ending.code == (finished ? 0 : code));
  const dsv3::Json status = dsv3::read_json(run / "status.json");
  REQUIRE(status.at("step") == step);
  REQUIRE(status.at("exit_code") == ending.code);
  REQUIRE(status.at("state") == (finished             ? "finished"
                                 : code == kPreempted ? "preempted"
                                                      : "interrupted"));
  REQUIRE(newest_checkpoint(run) == (step == 0 ? -1 : step));
}

uint64_t seed() {
  const char* text = std::getenv("DSV3_TEST_SEED");
  return text && *text ? std::stoull(text) : std::random_device()();
}

}  // namespace

TEST_CASE("a signal stops a run after the current step, and the run resumes bit-identically") {
  Runs runs;
  const uint64_t first_seed = seed();
  std::mt19937_64 random(first_seed);
  int stopped = 0;
  for (int repeat = 0; repeat < 3; ++repeat)
    for (const Signal::Place place : {Signal::training, Signal::evaluation, Signal::saving})
      for (const int number : {SIGTERM, SIGUSR2, SIGINT}) {
        const Signal signal{number, place, 1 + int(random() % uint64_t(runs.points(place)))};
        INFO("DSV3_TEST_SEED=" << first_seed << ", " << signal.text());
        const Ending ending = runs.start({signal});
        REQUIRE(ending.signals_sent == 1);
        require_stopped(ending, runs.folder(), number == SIGINT ? kInterrupted : kPreempted, place);
        stopped += ending.code != 0;
        runs.require_exact_resume();
      }
  CHECK(stopped > 9);
}

TEST_CASE("a second SIGINT ends the run at once, and the run resumes bit-identically") {
  Runs runs;
  const uint64_t first_seed = seed();
  std::mt19937_64 random(first_seed);
  for (const Signal::Place place : {Signal::training, Signal::saving, Signal::saving}) {
    // The first signal arrives in the first third of a step, so that the second one arrives before
    // the run has stopped.
    const int third = runs.outputs_per_step() / 3;
    const int step = int(random() % (kSteps - 1));
    const auto any = [&](int limit) { return 1 + int(random() % uint64_t(limit)); };
    const Signal first{SIGINT, Signal::training, step * runs.outputs_per_step() + any(third)};
    const Signal second{SIGINT, place, any(place == Signal::saving ? 5 : third)};
    INFO("DSV3_TEST_SEED=" << first_seed << ", " << first.text() << ", " << second.text());
    const Ending ending = runs.start({first, second});
    INFO(ending.output);
    REQUIRE(ending.signals_sent == 2);
    REQUIRE_FALSE(ending.killed);
    REQUIRE(ending.code == kInterrupted);
    REQUIRE(newest_checkpoint(runs.folder()) <= ending.steps_at_signal);
    runs.require_exact_resume();
  }
}

TEST_CASE("if different signals arrive in one step, the last one determines the exit code") {
  Runs runs;
  for (const auto& [first, second, code] : {std::tuple{SIGTERM, SIGINT, kInterrupted},
                                            {SIGINT, SIGTERM, kPreempted},
                                            {SIGTERM, SIGUSR2, kPreempted},
                                            {SIGUSR2, SIGUSR2, kPreempted}}) {
    const std::vector<Signal> signals{{first, Signal::training, 3 * runs.outputs_per_step() + 1},
                                      {second, Signal::training, 2}};
    INFO(signals[0].text() << ", " << signals[1].text());
    const Ending ending = runs.start(signals);
    REQUIRE(ending.signals_sent == 2);
    require_stopped(ending, runs.folder(), code);
    runs.require_exact_resume();
  }
}
