// Tests that a run that is killed at any point and then resumed is bit-identical to a run that was
// never killed.
#include <cstdlib>
#include <iostream>

#include <catch2/catch.hpp>

#include "core/kill/children.h"
#include "core/kill/left_behind.h"

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kPoints = 20, kAllPoints = 20;
#else
constexpr int64_t kPoints = 200, kAllPoints = 2000;
#endif

int64_t number_from(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text && *text ? std::atoll(text) : otherwise;
}

Death any_death(std::mt19937_64& random, const Ending& unkilled) {
  constexpr Death::Kind kinds[] = {Death::before_call, Death::before_call, Death::before_call,
                                   Death::torn_write,  Death::moment,      Death::power_cut};
  constexpr PowerCut::Unsynced fates[] = {PowerCut::Unsynced::lost, PowerCut::Unsynced::no_data,
                                          PowerCut::Unsynced::all_data, PowerCut::Unsynced::random};
  Death death;
  death.kind = kinds[random() % std::size(kinds)];
  death.call = 1 + static_cast<int>(random() % static_cast<uint64_t>(unkilled.calls));
  death.bytes = random() % 400;
  death.seconds = unkilled.seconds * static_cast<double>(random() % 1000) / 1000;
  death.unsynced = fates[random() % std::size(fates)];
  death.seed = random();
  return death;
}

bool inside_a_save(const std::filesystem::path& run) {
  if (!std::filesystem::exists(run / "checkpoints")) return false;
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints"))
    if (entry.path().string().find(".tmp-") != std::string::npos) return true;
  return false;
}

/// Returns the number after the last occurrence of `words` in `text`, or -1 if there is none.
int64_t last_number(const std::string& text, const std::string& words) {
  const size_t at = text.rfind(words);
  return at == std::string::npos ? -1 : std::atoll(text.c_str() + at + words.size());
}

int64_t threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

}  // namespace

TEST_CASE("a run killed at any point can be resumed with bit-identical results") {
  TinyExperiment tiny;
  REQUIRE(threads() == 1);
  const Ending unkilled = tiny.train("unkilled");
  INFO(unkilled.output);
  REQUIRE(unkilled.code == 0);
  const LeftBehind expected(tiny.run("unkilled"));
  REQUIRE(fault_in(tiny.run("unkilled")) == "");
  REQUIRE(expected.metrics.size() > 10);
  std::filesystem::remove_all(tiny.run("unkilled"));

  const bool full = number_from("DSV3_TEST_FULL", 0) == 1;
  const int64_t points = number_from("DSV3_KILL_POINTS", full ? kAllPoints : kPoints);
  const auto seed = static_cast<uint64_t>(number_from("DSV3_TEST_SEED", 1));
  int64_t killed = 0, killed_twice = 0, saving = 0, resumed = 0;
  for (int64_t point = 0; point < points; ++point) {
    std::seed_seq mixed{seed, static_cast<uint64_t>(point)};
    std::mt19937_64 random(mixed);
    const Death death = any_death(random, unkilled);
    INFO("DSV3_TEST_SEED=" << seed << ", point " << point << ": " << death.text());
    const auto run = tiny.run("run");
    const Ending first = tiny.train("run", death);
    killed += first.killed;
    saving += inside_a_save(run);
    std::string output = first.output;
    if (random() % 4 == 0) {  // sometimes kills the resumed run as well
      const Death second = any_death(random, unkilled);
      UNSCOPED_INFO("then " << second.text());
      const Ending more = tiny.train("run", second);
      killed_twice += more.killed;
      output += more.output;
    }
    const Ending last = tiny.train("run");
    INFO(output << last.output);
    const int64_t saved =
        last_number(output, "saved checkpoint " + (run / "checkpoints/step-").string());
    const int64_t from = last_number(last.output, "resuming from step ");
    resumed += from > 0;
    REQUIRE(from >= saved);
    REQUIRE(last.code == 0);
    REQUIRE(expected.difference(LeftBehind(run)) == "");
    REQUIRE(fault_in(run) == "");
    std::filesystem::remove_all(run);
  }
  std::cout << points << " kill points, seed " << seed << ": " << killed << " killed, "
            << killed_twice << " killed twice, " << saving << " during a save, " << resumed
            << " resumed from a step above 0\n";
  REQUIRE(killed > points / 2);
  REQUIRE(saving > 0);
  REQUIRE(resumed > points / 4);
}
