// Conformance checks for trackers. A tracker's service may be unreachable. The tracker then throws
// RetryAfter, and the core delivers the same events again.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <sys/resource.h>
#include <thread>

#include <dsv3/sdk/tracker.h>
#include <dsv3/support/fs.h>

#include "conformance/suite.h"
#include "track/store.h"

namespace dsv3::conformance {
namespace {

std::vector<Event> events(int64_t first, int64_t count) {
  std::vector<Event> list;
  for (int64_t id = first; id < first + count; ++id) {
    const decltype(Event::metrics) metrics{{"train/loss", 5.0 / double(id + 1)},
                                           {"train/lr/adamw (embedding, head)", 3e-4}};
    list.push_back({id, id * 10, id * 1000, 1764000000.0 + double(id), metrics});
  }
  return list;
}

record::Checkpoint checkpoint() {
  return {"checkpoints/step-0000010", {{"val/loss", 4.5}}, "text", std::string(64, 'b')};
}

/// Records of each type.
std::vector<Record> records(int64_t first) {
  const std::vector<Record::Content> contents{
      record::Parameters{{{"optimizer.0.lr", "0.02"}, {"train.steps", "100"}}},
      record::Tags{{{"team", "language"}}},
      record::Dataset{"training", "text", std::string(64, 'a'), "path: corpus"},
      record::Dataset{"validation", "text", std::string(64, 'b'), "path: corpus"},
      record::File{"config.yaml"},
      checkpoint(),
      record::CheckpointRemoved{"checkpoints/step-0000005"},
      record::Samples{{{"The", " caf\xc3\xa9"}, {"", "\n"}}},
      record::Span{std::string(32, '1'),
                   std::string(16, '2'),
                   "",
                   "train",
                   1764000000.0,
                   1764000001.5,
                   {{"step", "10"}}},
      record::State{"resumed"}};
  std::vector<Record> list;
  for (const Record::Content& content : contents)
    list.push_back({first + std::ssize(list), 10, 1764000000.0, content});
  return list;
}

// Calls a tracker as one training process does. Each call must succeed or throw RetryAfter.
// Anything else fails the check. If start() does not succeed, nothing is delivered.
class Session {
 public:
  explicit Session(const Subject& subject, bool resumed = false) : folder_(subject.folder) {
    const auto store = std::make_shared<TrackerFiles>(folder_ / "trackers", "conformance");
    tracker_ = construct<Tracker>(subject, RunContext{subject.folder, store, {}, {}});
    if (const std::string reason = tracker_->inactive(); !reason.empty())
      throw NotApplicable("the tracker is not used: " + reason);
    fs::write_atomically(folder_ / "config.yaml", kConfig);
    call(resumed ? "start() of a resumed run" : "start()", [&] {
      tracker_->start({.name = "conformance",
                       .folder = subject.folder,
                       .experiment = "conformance",
                       .config = kConfig,
                       .resumed = resumed,
                       .uid = std::string(32, '0'),
                       .start_time = 1764000000.0,
                       .parameters = {{"name", "conformance"}},
                       .branched_from = BranchSource{std::string(32, '1'), "source", 5}});
      started_ = true;
    });
  }
  void record(const std::vector<Record>& list, const std::string& what = "record()") {
    if (started_) call(what, [&] { tracker_->record(list); });
  }
  /// Uploads as the core's second thread does.
  void upload() {
    if (!started_ || !tracker_->uploads()) return;
    const Record file{3, 0, 1764000000.0, record::File{"config.yaml"}};
    call("upload()", [&] { tracker_->upload(folder_ / "config.yaml", file); });
    const Record saved{4, 10, 1764000000.0, checkpoint()};
    fs::make_folders(folder_ / "files");
    fs::write_atomically(folder_ / "files/manifest.json", "{}");
    if (tracker_->uploads_checkpoint(saved))
      call("upload_checkpoint()", [&] { tracker_->upload_checkpoint(folder_ / "files", saved); });
  }
  void deliver(const std::vector<Event>& list, const std::string& what = "deliver()") {
    if (started_) call(what, [&] { tracker_->deliver(list); });
  }
  /// Whether every call so far has succeeded.
  bool accepted() const { return accepted_; }
  void finish(RunStatus status) {
    if (started_) call("finish()", [&] { tracker_->finish(status); });
  }

 private:
  void call(const std::string& what, const std::function<void()>& body) {
    for (int attempt = 0; attempt < 3; ++attempt) {
      try {
        return body();
      } catch (const RetryAfter& e) {
        accepted_ = false;
        require(std::isfinite(e.seconds) && e.seconds >= 0, what, " throws RetryAfter with ",
                e.seconds, " seconds");
      }
    }
  }

  static constexpr const char* kConfig = "dsv3: 1\nname: conformance\n";
  const std::filesystem::path folder_;
  std::shared_ptr<Tracker> tracker_;
  bool started_ = false, accepted_ = true;
};

/// What this thread has done that can have recorded an event: bytes that the process has written to
/// files and pipes, and waits, such as for the reply of a server.
struct Activity {
  Activity() {
    std::cout.flush();
    std::fflush(nullptr);
    std::ifstream file("/proc/self/io");
    for (std::string key; file >> key && key != "wchar:";) {
    }
    file >> written;
    rusage usage;
    ::getrusage(RUSAGE_THREAD, &usage);
    waits = usage.ru_nvcsw;
  }
  bool operator==(const Activity&) const = default;

  int64_t written = 0, waits = 0;
};

}  // namespace

void tracker_checks(const AddCheck& check) {
  check("delivery", "accepts events or throws RetryAfter", [](const Subject& subject) {
    Session session(subject);
    session.deliver(events(0, 1));
    session.deliver(events(1, 50));
    session.deliver({}, "deliver() of an empty list");
    session.finish(RunStatus::finished);
  });
  check("records", "records events before deliver() returns", [](const Subject& subject) {
    Session session(subject);
    for (int64_t id = 0; id < 3; ++id) {
      const Activity before;
      session.deliver(events(id, 1));
      require(!session.accepted() || Activity() != before,
              "deliver() returns without having written or sent the event; the core never delivers "
              "an accepted event again, so write files without buffers, or throw RetryAfter");
    }
    session.finish(RunStatus::finished);
  });
  check("values", "accepts NaN, infinity, unusual names and new metrics",
        [](const Subject& subject) {
          Session session(subject);
          std::vector<Event> unusual = events(0, 2);
          unusual[0].metrics = {{"nan", std::numeric_limits<double>::quiet_NaN()},
                                {"infinity", HUGE_VAL},
                                {"tiny", 5e-324},
                                {"quotes \"and\", commas; caf\xc3\xa9/slash", -1.0}};
          unusual[1].metrics = {};
          session.deliver(unusual, "deliver() of unusual values");
          std::vector<Event> late = events(2, 1);
          late[0].metrics.emplace_back("val/loss", 4.0);
          session.deliver(late, "deliver() of a metric that earlier events did not contain");
          session.finish(RunStatus::failed);
        });
  check("journal", "accepts records of every type, also repeated, and uploads",
        [](const Subject& subject) {
          Session session(subject);
          for (int time = 0; time < 2; ++time) session.record(records(0));
          session.record({}, "record() of an empty list");
          std::thread(&Session::upload, &session).join();
          session.finish(RunStatus::finished);
        });
  // The core delivers events again if the acknowledgement was lost after the tracker had accepted
  // them.
  check("repeated", "accepts repeated events", [](const Subject& subject) {
    Session session(subject);
    for (int time = 0; time < 2; ++time)
      session.deliver(events(0, 10), "deliver() of repeated events");
    session.finish(RunStatus::stopped);
  });
  check("resumed", "resumes a run that was killed", [](const Subject& subject) {
    Session(subject).deliver(events(0, 5));  // no finish(), as if the process had been killed
    Session session(subject, true);
    session.deliver(events(5, 5));
    session.finish(RunStatus::finished);
  });
  check("memory", "frees its memory", [](const Subject& subject) {
    Session session(subject);
    int64_t id = 0;
    require_steady_memory([&] {
      session.deliver(events(id, 20));
      id += 20;
    });
  });
}

}  // namespace dsv3::conformance
