// Sends metrics.jsonl to the trackers, each on its own thread: training never waits for a tracker
// and never fails because of one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>

#include <dsv3/sdk/tracker.h>

namespace dsv3 {

struct NamedTracker {
  std::string name;  ///< unique in the run; used as the name of the offset file
  std::shared_ptr<Tracker> tracker;
};

/// The time, and waiting for it. Tests replace it by a clock that does not sleep.
class SenderClock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  virtual ~SenderClock() = default;
  virtual Time now();
  /// Waits until `stop` returns true or `until` is reached. Evaluates `stop` first, and whenever
  /// `wake` is notified. `lock` is held except while waiting.
  virtual void wait_until(std::condition_variable& wake, std::unique_lock<std::mutex>& lock,
                          Time until, const std::function<bool()>& stop);
};

/// Uses metrics.jsonl as a journal. Each tracker reads it from the line after the last one that it
/// acknowledged. The number of that line is stored in <run folder>/trackers/<name>.json. A killed
/// run therefore loses no metrics, and a tracker that fails catches up later.
class TrackerSender {
 public:
  /// Starts one thread per tracker. `journal` need not exist yet.
  TrackerSender(std::vector<NamedTracker> trackers, RunInfo run, std::filesystem::path journal,
                std::shared_ptr<SenderClock> clock = std::make_shared<SenderClock>());
  ~TrackerSender();
  TrackerSender(const TrackerSender&) = delete;
  TrackerSender& operator=(const TrackerSender&) = delete;
  /// Call this after each append to the journal.
  void notify();
  /// Sends the remaining lines, and starts no attempt later than `seconds` from now. Then ends the
  /// threads. Abandons a thread whose tracker is still busy after `seconds`. Lines that could not be
  /// sent stay in the journal and are sent when the run resumes.
  void finish(RunStatus status, double seconds = 10);

 private:
  class Worker;
  std::shared_ptr<SenderClock> clock_;
  std::vector<std::shared_ptr<Worker>> workers_;
};

/// Converts a line of metrics.jsonl to an event; `id` is the line's number, from 0.
Event parse_event(const std::string& line, int64_t id);

}  // namespace dsv3
