// Sends the journals of a run to its trackers, on threads of their own: training never waits for a
// tracker and never fails because of one.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include <dsv3/sdk/tracker.h>

#include "track/store.h"
#include "track/worker.h"

namespace dsv3 {

/// How long a run waits for its trackers at its end. The process can then end within 10 s of its
/// last step.
inline constexpr double kEndSeconds = 9;

struct NamedTracker {
  std::string name;  ///< unique in the run; used in the names of its files
  std::shared_ptr<Tracker> tracker;
  std::shared_ptr<TrackerFiles> files = {};  ///< the same as the tracker's RunContext::store
  std::stop_source stop = {};                ///< of RunContext::stop
};

/// Uses metrics.jsonl and events.jsonl as journals, which each tracker reads from the line after
/// the last one that it acknowledged. A killed run therefore loses nothing, and a tracker that
/// fails catches up later. Each tracker has a thread, and a second one if it uploads files.
class TrackerSender {
 public:
  /// Starts the threads. The journals need not exist yet.
  TrackerSender(std::vector<NamedTracker> trackers, RunInfo run,
                std::shared_ptr<SenderClock> clock = std::make_shared<SenderClock>());
  ~TrackerSender();
  TrackerSender(const TrackerSender&) = delete;
  TrackerSender& operator=(const TrackerSender&) = delete;
  /// Call this after each append to a journal.
  void notify();
  /// Links the files of a checkpoint for the trackers that will upload it, and returns whether
  /// there are any. Call this before its record is appended.
  bool keep_for_upload(const Record& checkpoint);
  /// Sends the remaining lines, and starts no attempt later than `seconds` from now, nor one to
  /// reach a tracker's service for the first time later than `begin_seconds`. Then ends the
  /// threads. Abandons a thread whose tracker is still busy after that. Lines that could not be
  /// sent stay in the journals and are sent when the run resumes. Returns whether everything was
  /// sent.
  bool finish(RunStatus status, double seconds = kEndSeconds, double begin_seconds = kEndSeconds);

 private:
  class Delivery;
  const RunInfo run_;
  std::shared_ptr<SenderClock> clock_;
  std::vector<std::shared_ptr<Delivery>> deliveries_;
};

/// Whether a tracker has acknowledged all lines of the journals in the folder `run`.
bool has_received_everything(const NamedTracker& tracker, const std::filesystem::path& run);

/// Acknowledges all files that the journal in the folder `run` names, because they come from the
/// tracker's service. Its metrics may not, so they are sent again.
void skip_uploads(const std::filesystem::path& run, const std::string& tracker);

/// Converts a line of metrics.jsonl to an event; `id` is the line's number, from 0.
Event parse_event(const std::string& line, int64_t id);

}  // namespace dsv3
