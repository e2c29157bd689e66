// Tests how metrics reach trackers that fail, reject events, or start late, on a clock that does
// not sleep.
#include <cmath>
#include <limits>
#include <sstream>
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "core/track/scripted_run.h"

namespace {
std::mutex log_mutex;
std::string logged;
}  // namespace

std::string take_log() {
  const std::lock_guard lock(log_mutex);
  return std::exchange(logged, "");
}

namespace dsv3::log {
// Default visibility makes libdsv3 call this function instead of its own log::write().
__attribute__((visibility("default"))) void write(Level level, const std::string& message) {
  const std::lock_guard lock(log_mutex);
  if (level >= Level::warning) logged += message + "\n";
}
}  // namespace dsv3::log

TEST_CASE("a sender delivers every line once and in order, also those added while it runs") {
  Run run;
  run.append(450);  // more than fit into two calls
  auto sender = run.sender();
  for (int i = 0; i < 20; ++i) {
    run.append(1 + i % 3);
    sender->notify();
  }
  run.append(5);  // without notify()
  sender->finish(RunStatus::finished);
  const Ids expected = ids_from(0, 450 + 39 + 5);
  CHECK(run.tracker->accepted == expected);
  CHECK(run.offset() == std::ssize(expected));
  CHECK(*std::max_element(run.tracker->sizes.begin(), run.tracker->sizes.end()) <= 200);
  CHECK((run.tracker->finished == std::vector{RunStatus::finished}));
  CHECK(run.clock->waits().empty());
  CHECK(take_log() == "");
}

TEST_CASE("a tracker gets few long lines at once, and also a line above the limit") {
  Run run;
  std::ofstream file(run.journal());
  for (const size_t length : {100'000, 100'000, 100'000, 100'000, 300'000, 1, 1})
    file << R"({"step": 1, "tokens": 8, "time": 1.5, ")" << std::string(length, 'x') << "\": 2}\n";
  file.close();
  run.sender()->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == ids_from(0, 7));
  CHECK(run.tracker->sizes == std::vector<size_t>{3, 2, 2});
}

TEST_CASE("a failed call is retried after pauses that double up to a minute") {
  Run run;
  run.append(3);
  run.clock->flow();
  run.tracker->on_deliver = fails(11);
  auto sender = run.sender();
  while (run.tracker->deliveries < 12) std::this_thread::yield();
  sender->finish(RunStatus::finished);
  CHECK(run.clock->waits() == std::vector<double>{0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60});
  CHECK(run.tracker->accepted == ids_from(0, 3));
  const std::string log = take_log();
  CHECK(count_in(log, "the server is down") == 1);  // one warning for the whole outage
  CHECK(log.find("tracker 'first' cannot deliver metrics, retrying") != std::string::npos);
}

TEST_CASE("after a success, the next failure is retried after the shortest pause") {
  Run run;
  run.append(1000);  // five calls
  run.clock->flow();
  run.tracker->on_deliver = [](int call, std::span<const Event>) {
    if (call % 3 != 2) throw std::runtime_error("busy");
  };
  auto sender = run.sender();
  while (run.tracker->deliveries < 15) std::this_thread::yield();
  sender->finish(RunStatus::finished);
  CHECK(run.clock->waits() == std::vector<double>{0.5, 1, 0.5, 1, 0.5, 1, 0.5, 1, 0.5, 1});
  CHECK(run.tracker->accepted == ids_from(0, 1000));
}

TEST_CASE("the sender waits as long as a tracker requests, within limits") {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<double, double>> cases{
      {7, 7}, {300, 300}, {0, 0.1}, {-5, 0.1}, {kNan, 0.1}, {HUGE_VAL, 86400}, {1e300, 86400}};
  Run run;
  run.append(2);
  run.clock->flow();
  run.tracker->on_deliver = [&](int call, std::span<const Event>) {
    if (size_t(call) < cases.size()) throw dsv3::RetryAfter("slower", cases[size_t(call)].first);
  };
  auto sender = run.sender();
  while (run.tracker->deliveries <= int(cases.size())) std::this_thread::yield();
  sender->finish(RunStatus::finished);
  const std::vector<double> waits = run.clock->waits();
  REQUIRE(waits.size() == cases.size());
  for (size_t i = 0; i < cases.size(); ++i) CHECK(waits[i] == Approx(cases[i].second));
  CHECK(run.tracker->accepted == ids_from(0, 2));
}

TEST_CASE("what a tracker rejects is listed in a file, with one warning") {
  Run run;
  run.append(10);
  const auto files = std::make_shared<dsv3::TrackerFiles>(run.folder() / "trackers", "first");
  run.tracker->on_deliver = [&](int, std::span<const Event> events) {
    for (const Event& event : events)
      if (event.id % 4 == 3) files->reject(event, "train/loss", "loss too long");
  };
  run.sender({{"first", run.tracker, files}})->finish(RunStatus::finished);
  CHECK(run.offset() == 10);
  const std::string log = take_log();
  CHECK(count_in(log, "loss too long") == 1);
  CHECK(log.find("rejected train/loss in metrics.jsonl:4: loss too long") != std::string::npos);
  CHECK(log.find("tracker 'first' rejected 2 entries") != std::string::npos);
  std::istringstream lines(get(run.folder() / "trackers/first.rejected.jsonl"));
  for (const int number : {4, 8}) {
    std::string line;
    std::getline(lines, line);
    const dsv3::Json entry = dsv3::Json::parse(line);
    CHECK(entry.at("journal") == "metrics.jsonl");
    CHECK(entry.at("line") == number);
    CHECK(entry.at("step") == number - 1);
    CHECK(entry.at("reason") == "loss too long");
  }
}

TEST_CASE("a line that is not an event is rejected, and the others are delivered") {
  Run run;
  run.append(2);
  std::ofstream(run.journal(), std::ios::app) << "{\"step\": \"two\"}\nnot JSON\n";
  run.append(1);
  run.sender()->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == Ids{0, 1, 4});
  CHECK(run.offset() == 5);
  CHECK(count_in(get(run.folder() / "trackers/first.rejected.jsonl"), "\n") == 2);
}

TEST_CASE("when the run ends, a waiting sender retries at once and gives up at the deadline") {
  Run run;
  run.append(3);
  run.tracker->on_deliver = fails(1'000'000);
  auto sender = run.sender();
  run.clock->await_waiting(1);
  CHECK(run.tracker->deliveries == 1);
  run.clock->flow();
  sender->finish(RunStatus::finished, 10);
  // 0.5 was interrupted. The next pause, 8 s, would end after the deadline.
  CHECK(run.clock->waits() == std::vector<double>{0.5, 0.5, 1, 2, 4});
  CHECK(run.clock->elapsed() == Approx(7.5));
  CHECK(run.tracker->deliveries == 6);
  CHECK(run.tracker->finished.empty());
  CHECK_FALSE(exists(run.offset_file()));
  const std::string log = take_log();
  CHECK(log.find("tracker 'first' has not received everything; the rest will be sent when the run "
                 "resumes, or by `dsv3 sync ") != std::string::npos);
  CHECK(log.find("`: the server is down\n") != std::string::npos);
}

TEST_CASE(
    "at the end, the sender does not wait for a tracker that asks for more than the time left") {
  Run run;
  run.append(3);
  run.tracker->on_deliver = [](int, std::span<const Event>) {
    throw dsv3::RetryAfter("quota exceeded", 3600);
  };
  auto sender = run.sender();
  run.clock->await_waiting(1);
  run.clock->flow();
  sender->finish(RunStatus::stopped, 10);
  CHECK(run.tracker->deliveries == 2);
  CHECK(run.clock->elapsed() == 0);
}

TEST_CASE("a tracker that recovers before the deadline receives everything") {
  Run run;
  run.append(3);
  run.tracker->on_deliver = fails(4);
  run.tracker->on_finish = fails(1);
  auto sender = run.sender();
  run.clock->await_waiting(1);
  run.append(2);
  sender->notify();  // does not interrupt the pause
  run.clock->flow();
  sender->finish(RunStatus::failed, 10);
  CHECK(run.tracker->accepted == ids_from(0, 5));
  CHECK((run.tracker->finished == std::vector{RunStatus::failed}));
  CHECK(run.tracker->finishes == 2);
  CHECK(run.offset() == 5);
}

TEST_CASE("a sender that is destroyed without finish() tries once and reports a failed run") {
  Run run;
  run.append(3);
  SECTION("a tracker that works") {
    run.sender();
    CHECK(run.tracker->accepted == ids_from(0, 3));
    CHECK((run.tracker->finished == std::vector{RunStatus::failed}));
  }
  SECTION("a tracker that fails") {
    run.tracker->on_deliver = fails(1'000'000);
    run.sender();
    CHECK(run.tracker->deliveries <= 2);
    CHECK(run.tracker->accepted.empty());
  }
}

TEST_CASE("a new sender resumes after the last acknowledged line") {
  Run run;
  run.append(203);
  run.sender()->finish(RunStatus::stopped);
  REQUIRE(run.offset() == 203);
  run.append(2);
  run.tracker->on_deliver = fails(1'000'000);
  run.sender();
  CHECK(run.offset() == 203);
  run.tracker->on_deliver = nullptr;
  run.append(1);
  run.sender()->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == ids_from(0, 206));
  CHECK(run.offset() == 206);
}

TEST_CASE(
    "a sender killed before it saved its offset delivers only the unacknowledged lines again") {
  Run run;
  run.append(450);
  run.clock->flow();
  int saves = 0;
  dsv3::fs::set_fault_hook([&](dsv3::fs::Call call, const std::filesystem::path& path) {
    const bool saves_offset =
        call == dsv3::fs::Call::rename && path.parent_path().filename() == "trackers";
    return saves_offset && ++saves > 1 ? EIO : 0;  // only the first save succeeds
  });
  run.sender();
  dsv3::fs::set_fault_hook({});
  REQUIRE(run.offset() == 200);
  CHECK(run.tracker->accepted == ids_from(0, 400));
  CHECK(take_log().find("cannot save its offset") != std::string::npos);
  run.tracker->accepted.clear();
  run.sender()->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == ids_from(200, 250));
}

TEST_CASE("a torn last line is sent only once it is complete") {
  Run run;
  run.append(2);
  std::ofstream(run.journal(), std::ios::app) << R"({"step": 2, "tokens": 8, "time")";
  run.sender()->finish(RunStatus::stopped);
  CHECK(run.tracker->accepted == ids_from(0, 2));
  std::ofstream(run.journal(), std::ios::app) << ": 1, \"x\": 3}\n";
  run.sender()->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == ids_from(0, 3));
}

TEST_CASE("if the journal lost acknowledged lines, the lines written after it are sent") {
  Run run;
  run.append(5);
  run.sender()->finish(RunStatus::stopped);
  const std::string text = get(run.journal());
  put(run.journal(), text.substr(0, text.find('\n') + 1));  // a power cut left one of five lines
  run.sender();  // has nothing to send, but must forget the lost lines
  CHECK(run.offset() == 1);
  run.append(3);
  run.sender()->finish(RunStatus::finished);
  CHECK(std::ssize(run.tracker->accepted) == 5 + 3);
  CHECK(run.offset() == 4);
}

TEST_CASE("a tracker whose start fails is started again before it receives events") {
  Run run;
  run.append(4);
  run.clock->flow();
  run.tracker->on_start = fails(3);
  run.tracker->on_deliver = [&](int, std::span<const Event>) { CHECK(run.tracker->starts == 4); };
  auto sender = run.sender();
  while (run.tracker->deliveries < 1) std::this_thread::yield();
  sender->finish(RunStatus::finished);
  CHECK(run.clock->waits() == std::vector<double>{0.5, 1, 2});
  CHECK(run.tracker->accepted == ids_from(0, 4));
  CHECK(run.tracker->starts == 4);
}

TEST_CASE("a tracker that never starts ends at the deadline without any events") {
  Run run;
  run.append(4);
  run.tracker->on_start = fails(1'000'000);
  auto sender = run.sender();
  run.clock->await_waiting(1);
  run.clock->flow();
  sender->finish(RunStatus::finished, 3);
  CHECK(run.clock->elapsed() == Approx(1.5));
  CHECK(run.tracker->deliveries == 0);
  CHECK(run.tracker->finished.empty());
  CHECK(take_log().find("cannot start, retrying: the server is down") != std::string::npos);
}

TEST_CASE("a tracker that never starts ends before the deadline of one that has started") {
  Run run;
  run.append(4);
  SECTION("never") {
    run.tracker->on_start = fails(1'000'000);
    auto sender = run.sender();
    run.clock->await_waiting(1);
    run.clock->flow();
    CHECK_FALSE(sender->finish(RunStatus::finished, 600, 3));
    CHECK(run.clock->elapsed() == Approx(1.5));
  }
  SECTION("started, but its deliveries fail for longer") {
    run.tracker->on_deliver = fails(6);
    auto sender = run.sender();
    run.clock->await_waiting(1);
    run.clock->flow();
    CHECK(sender->finish(RunStatus::finished, 600, 3));
    CHECK(run.tracker->accepted == ids_from(0, 4));
  }
}

TEST_CASE("a failing tracker does not delay another one, and each has its own offset") {
  Run run;
  run.append(4);
  const auto healthy = std::make_shared<ScriptedTracker>();
  run.tracker->on_deliver = [](int, std::span<const Event>) { throw 42; };
  auto sender = run.sender({{"first", run.tracker}, {"second", healthy}});
  run.clock->await_waiting(1);  // time stands still, so the first tracker stays in its pause
  run.append(300);
  sender->notify();
  while (healthy->received < 304) std::this_thread::yield();
  run.clock->flow();
  sender->finish(RunStatus::finished, 10);
  CHECK(healthy->accepted == ids_from(0, 304));
  CHECK((healthy->finished == std::vector{RunStatus::finished}));
  CHECK(run.offset("second") == 304);
  CHECK(run.tracker->accepted.empty());
  CHECK_FALSE(exists(run.offset_file("first")));
  run.tracker->on_deliver = nullptr;
  run.sender({{"first", run.tracker}, {"second", healthy}})->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == ids_from(0, 304));
  CHECK(healthy->accepted == ids_from(0, 304));
}

TEST_CASE("an event has the values of its line") {
  const Event event =
      dsv3::parse_event(R"({"step": 3, "tokens": 48, "time": 1.25, "a": 0.1, "b/c": "NaN"})", 17);
  CHECK(event.id == 17);
  CHECK(event.step == 3);
  CHECK(event.tokens == 48);
  CHECK(event.time == 1.25);
  REQUIRE(event.metrics.size() == 2);
  CHECK(event.metrics[0] == std::pair<std::string, double>{"a", 0.1});
  CHECK(event.metrics[1].first == "b/c");
  CHECK(std::isnan(event.metrics[1].second));
}
