// Promises of trackers. Whatever a tracker sends to may be away: it may refuse (RetryAfter), and
// the core then hands it the same events again.
#include <cmath>
#include <filesystem>
#include <limits>

#include <dsv3/sdk/tracker.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

constexpr int kAttempts = 3;

std::string new_folder(const Subject& subject, const std::string& name) {
  const auto folder = std::filesystem::path(subject.folder) / name;
  std::filesystem::create_directories(folder);
  return folder.string();
}

RunInfo info(const std::string& folder, bool resumed = false) {
  return {"conformance", folder, "conformance", "dsv3: 1\nname: conformance\n", resumed};
}

std::vector<Event> events(int64_t first, int64_t count) {
  std::vector<Event> made;
  for (int64_t id = first; id < first + count; ++id)
    made.push_back({id,
                    id * 10,
                    id * 1000,
                    1764000000.0 + static_cast<double>(id),
                    {{"train/loss", 5.0 / static_cast<double>(id + 1)},
                     {"train/lr/adamw (embedding, head)", 3e-4}}});
  return made;
}

// RetryAfter and Rejected are the two ways to refuse; anything else is a fault.
template <class Call>
bool accepted(const std::string& what, const Call& call) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    try {
      call();
      return true;
    } catch (const RetryAfter& e) {
      require(std::isfinite(e.seconds) && e.seconds >= 0,
              what + " asks for a retry after " + std::to_string(e.seconds) + " seconds");
    } catch (const Rejected&) {
      return false;
    }
  }
  return false;
}

void check_delivery(const Subject& subject) {
  const std::string folder = new_folder(subject, "delivery");
  const auto tracker = make<Tracker>(subject, RunContext{folder});
  if (!accepted("start()", [&] { tracker->start(info(folder)); })) return;
  accepted("deliver()", [&] { tracker->deliver(events(0, 1)); });
  accepted("deliver()", [&] { tracker->deliver(events(1, 50)); });
  accepted("deliver() of nothing", [&] { tracker->deliver({}); });
  accepted("finish()", [&] { tracker->finish(RunStatus::finished); });
}

void check_values(const Subject& subject) {
  const std::string folder = new_folder(subject, "values");
  const auto tracker = make<Tracker>(subject, RunContext{folder});
  if (!accepted("start()", [&] { tracker->start(info(folder)); })) return;
  std::vector<Event> odd = events(0, 2);
  odd[0].metrics = {{"nan", std::numeric_limits<double>::quiet_NaN()},
                    {"infinity", HUGE_VAL},
                    {"tiny", 5e-324},
                    {"quotes \"and\", commas; caf\xc3\xa9/slash", -1.0}};
  odd[1].metrics = {};
  accepted("deliver() of odd values", [&] { tracker->deliver(odd); });
  // A metric that was not there at first, e.g. val/loss.
  std::vector<Event> late = events(2, 1);
  late[0].metrics.emplace_back("val/loss", 4.0);
  accepted("deliver() of a new metric", [&] { tracker->deliver(late); });
  accepted("finish()", [&] { tracker->finish(RunStatus::failed); });
}

// The sender's acknowledgement may be lost after the tracker took the events.
void check_repeated(const Subject& subject) {
  const std::string folder = new_folder(subject, "repeated");
  const auto tracker = make<Tracker>(subject, RunContext{folder});
  if (!accepted("start()", [&] { tracker->start(info(folder)); })) return;
  for (int time = 0; time < 2; ++time)
    accepted("deliver() of events that it had before", [&] { tracker->deliver(events(0, 10)); });
  accepted("finish()", [&] { tracker->finish(RunStatus::stopped); });
}

void check_resumed(const Subject& subject) {
  const std::string folder = new_folder(subject, "resumed");
  {
    const auto killed = make<Tracker>(subject, RunContext{folder});
    if (!accepted("start()", [&] { killed->start(info(folder)); })) return;
    accepted("deliver()", [&] { killed->deliver(events(0, 5)); });
  }  // no finish: the process was killed
  const auto tracker = make<Tracker>(subject, RunContext{folder});
  accepted("start() of a run that goes on", [&] { tracker->start(info(folder, true)); });
  accepted("deliver()", [&] { tracker->deliver(events(5, 5)); });
  accepted("finish()", [&] { tracker->finish(RunStatus::finished); });
}

void check_memory(const Subject& subject) {
  const std::string folder = new_folder(subject, "memory");
  const auto tracker = make<Tracker>(subject, RunContext{folder});
  if (!accepted("start()", [&] { tracker->start(info(folder)); })) return;
  int64_t id = 0;
  require_steady_memory([&] {
    accepted("deliver()", [&] { tracker->deliver(events(id, 20)); });
    id += 20;
  });
}

}  // namespace

std::vector<Check> tracker_checks() {
  return {
      {"delivery", "takes a run's events, or refuses with RetryAfter or Rejected", check_delivery},
      {"values", "takes NaN, infinity, odd names and metrics that come late", check_values},
      {"repeated", "takes the same events again", check_repeated},
      {"resumed", "goes on with a run that was killed", check_resumed},
      {"memory", "gives its memory back", check_memory},
  };
}

}  // namespace dsv3::conformance
