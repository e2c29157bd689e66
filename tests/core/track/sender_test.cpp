// Tests how metrics reach trackers that fail, reject events, or start late, on a clock that does
// not sleep.
#include <atomic>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "core/support/temporary_folder.h"
#include "core/track/fake_clock.h"

using dsv3::Event;
using dsv3::NamedTracker;
using dsv3::RunStatus;
using dsv3::TrackerSender;
using Ids = std::vector<int64_t>;

namespace {

std::mutex log_mutex;
std::string logged;  // all warnings of the current test case

std::string take_log() {
  const std::lock_guard lock(log_mutex);
  return std::exchange(logged, "");
}

int count_in(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++count;
  return count;
}

Ids ids_from(int64_t first, int64_t count) {
  Ids ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

/// What a ScriptedTracker does in a call, before it accepts the call's events.
using Script = std::function<void(int call, std::span<const Event> events)>;

/// Records the ids of the events that it accepted. Every function first runs its script, which may
/// throw; `call` counts from 0. Tests read it after the sender has ended, or while it waits.
class ScriptedTracker final : public dsv3::Tracker {
 public:
  void start(const dsv3::RunInfo&) override {
    if (on_start) on_start(starts++, {});
  }
  void deliver(std::span<const Event> events) override {
    sizes.push_back(events.size());
    const int call = deliveries++;
    if (on_deliver) on_deliver(call, events);
    for (const Event& event : events) accepted.push_back(event.id);
    received += std::ssize(events);
  }
  void finish(RunStatus status) override {
    if (on_finish) on_finish(finishes++, {});
    finished.push_back(status);
  }

  Script on_start, on_deliver, on_finish;
  int starts = 0, finishes = 0;
  std::atomic<int> deliveries = 0;
  std::atomic<int64_t> received = 0;  ///< number of accepted events
  Ids accepted;
  std::vector<size_t> sizes;        ///< number of events in each call of deliver()
  std::vector<RunStatus> finished;  ///< statuses of successful finish() calls
};

/// A run folder with a journal.
class Run {
 public:
  std::shared_ptr<FakeClock> clock = std::make_shared<FakeClock>();
  std::shared_ptr<ScriptedTracker> tracker = std::make_shared<ScriptedTracker>();

  std::filesystem::path journal() const { return folder_ / "metrics.jsonl"; }
  std::filesystem::path offset_file(const std::string& name = "first") const {
    return folder_ / "trackers" / (name + ".json");
  }
  int64_t offset(const std::string& name = "first") const {
    return dsv3::read_json(offset_file(name)).at("lines").get<int64_t>();
  }
  void append(int64_t count) {
    std::ofstream file(journal(), std::ios::app | std::ios::binary);
    for (; count > 0; --count)
      file << "{\"step\": " << lines_++ << ", \"tokens\": 8, \"time\": 1.5, \"train/loss\": 2}\n";
  }
  std::unique_ptr<TrackerSender> sender(std::vector<NamedTracker> trackers) const {
    const dsv3::RunInfo info{"run", folder_.path().string(), "experiment", "dsv3: 1\n", false};
    return std::make_unique<TrackerSender>(std::move(trackers), info, journal(), clock);
  }
  std::unique_ptr<TrackerSender> sender() const { return sender({{"first", tracker}}); }

 private:
  TemporaryFolder folder_;
  int64_t lines_ = 0;
};

/// Throws in the first `count` calls.
Script fails(int count) {
  return [count](int call, std::span<const Event>) {
    if (call < count) throw std::runtime_error("the server is down");
  };
}

}  // namespace

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
  CHECK(log.find("tracker 'first' cannot deliver, retrying") != std::string::npos);
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

TEST_CASE("events that a tracker rejects are skipped, and the others are delivered once") {
  Run run;
  run.append(10);
  const std::set<int64_t> bad{0, 3, 4, 9};
  run.tracker->on_deliver = [&](int, std::span<const Event> events) {
    for (size_t i = 0; i < events.size(); ++i) {
      if (!bad.contains(events[i].id)) continue;
      for (const Event& event : events.first(i)) run.tracker->accepted.push_back(event.id);
      throw dsv3::Rejected("loss too long", i);
    }
  };
  run.sender()->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == Ids{1, 2, 5, 6, 7, 8});
  CHECK(run.offset() == 10);
  CHECK(run.clock->waits().empty());
  const std::string log = take_log();
  CHECK(count_in(log, "loss too long") == 4);
  for (const int64_t id : bad)
    CHECK(log.find("rejected step " + std::to_string(id) + ":") != std::string::npos);
}

TEST_CASE("events before a rejected one are not delivered again when a retry follows") {
  Run run;
  run.append(6);
  run.clock->flow();
  std::vector<Ids> calls;
  run.tracker->on_deliver = [&](int call, std::span<const Event> events) {
    Ids& ids = calls.emplace_back();
    for (const Event& event : events) ids.push_back(event.id);
    if (call == 0) throw dsv3::Rejected("no", 2);
    if (call == 1) throw std::runtime_error("connection lost");
  };
  auto sender = run.sender();
  while (run.tracker->deliveries < 3) std::this_thread::yield();
  sender->finish(RunStatus::finished);
  CHECK(calls == std::vector<Ids>{ids_from(0, 6), ids_from(3, 3), ids_from(3, 3)});
  CHECK(run.offset() == 6);
}

TEST_CASE("a rejection of an event that was not delivered is retried like an error") {
  Run run;
  run.append(2);
  run.clock->flow();
  run.tracker->on_deliver = [](int call, std::span<const Event>) {
    if (call == 0) throw dsv3::Rejected("confused", 2);
  };
  auto sender = run.sender();
  while (run.tracker->deliveries < 2) std::this_thread::yield();
  sender->finish(RunStatus::finished);
  CHECK(run.tracker->accepted == ids_from(0, 2));
  CHECK(take_log().find("rejected event 2 of 2") != std::string::npos);
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
  CHECK(take_log().find("the rest will be sent from metrics.jsonl when the run resumes: the "
                        "server is down") != std::string::npos);
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
