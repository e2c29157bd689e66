// Gives metrics.jsonl to the trackers, each from a thread of its own: training never waits for a
// tracker and never fails because of one.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/sdk/tracker.h>

namespace dsv3 {

struct NamedTracker {
  std::string name;  ///< unique in the run; names the offset file
  std::shared_ptr<Tracker> tracker;
};

/// metrics.jsonl is the journal: each tracker reads it from the last line that it has acknowledged,
/// kept in <run folder>/trackers/<name>.json, so that a killed run loses nothing and a failing
/// tracker catches up.
class TrackerSender {
 public:
  /// Starts a thread a tracker. `journal` may not exist yet.
  TrackerSender(std::vector<NamedTracker> trackers, RunInfo run, std::filesystem::path journal);
  ~TrackerSender();
  TrackerSender(const TrackerSender&) = delete;
  TrackerSender& operator=(const TrackerSender&) = delete;
  /// The journal has grown.
  void notify();
  /// Sends what is left, for at most `seconds`, then ends the threads. What could not be sent stays
  /// in the journal and is sent when the run goes on.
  void finish(RunStatus status, double seconds = 10);

 private:
  class Worker;
  std::vector<std::unique_ptr<Worker>> workers_;
};

/// The event that a line of metrics.jsonl holds; `id` is the line's number from 0. Throws
/// dsv3::Error.
Event parse_event(const std::string& line, int64_t id);

}  // namespace dsv3
