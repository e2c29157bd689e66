#include "track/sender.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <thread>

#include <dsv3/runtime/trackers.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "call/checked.h"

namespace dsv3 {
namespace {

constexpr size_t kEventsPerCall = 200;
constexpr std::chrono::seconds kLongestEnd{10};
std::atomic<bool> any_abandoned{false};
constexpr double kFirstRetry = 0.5, kLongestRetry = 60;               // seconds
constexpr double kShortestPause = 0.1, kLongestPause = 24 * 60 * 60;  // that a tracker may request

SenderClock::Time::duration clock_duration(double seconds) {
  return std::chrono::duration_cast<SenderClock::Time::duration>(
      std::chrono::duration<double>(seconds));
}

/// The seconds of a RetryAfter within limits, so that a tracker cannot keep a core busy. NaN
/// becomes the lower limit.
double pause_of(const RetryAfter& retry) {
  return std::min(std::max(kShortestPause, retry.seconds), kLongestPause);
}

}  // namespace

SenderClock::Time SenderClock::now() {
  return std::chrono::steady_clock::now();
}

void SenderClock::wait_until(std::condition_variable& wake, std::unique_lock<std::mutex>& lock,
                             Time until, const std::function<bool()>& stop) {
  wake.wait_until(lock, until, stop);
}

Event parse_event(const std::string& line, int64_t id) {
  const Json object = parse_json(line, "metrics.jsonl:" + std::to_string(id + 1));
  Event event;
  event.id = id;
  for (const auto& [key, value] : object.items()) {
    if (key == "step")
      event.step = value.get<int64_t>();
    else if (key == "tokens")
      event.tokens = value.get<int64_t>();
    else if (key == "time")
      event.time = value.get<double>();
    else
      event.metrics.emplace_back(key, number_from_json(value));
  }
  return event;
}

/// Sends events to one tracker: runs a thread, stores the tracker's offset in the journal, and
/// retries.
/// The thread shares ownership of the worker, because it may outlive the sender.
class TrackerSender::Worker : public std::enable_shared_from_this<TrackerSender::Worker> {
 public:
  Worker(NamedTracker tracker, const RunInfo& run, std::filesystem::path journal,
         std::shared_ptr<SenderClock> clock)
      : tracker_(std::move(tracker)),
        run_(run),
        clock_(std::move(clock)),
        journal_(std::move(journal)),
        offset_file_(std::filesystem::path(run.folder) / "trackers" / (tracker_.name + ".json")) {
    load_offset();
  }

  void start() {
    thread_ = std::thread([self = shared_from_this()] {
      self->work();
      const std::lock_guard lock(self->mutex_);
      self->ended_ = true;
      self->end_.notify_one();
    });
  }

  void notify() {
    const std::lock_guard lock(mutex_);
    journal_grew_ = true;
    wake_.notify_one();
  }

  /// Must be called only once, because the sender thread reads these values without the lock
  /// afterwards.
  void begin_finish(RunStatus status, SenderClock::Time deadline) {
    const std::lock_guard lock(mutex_);
    status_ = status;
    deadline_ = deadline;
    finishing_ = true;
    wake_.notify_one();
  }

  /// Joins the thread, or abandons it at `limit`.
  void end(std::chrono::steady_clock::time_point limit) {
    std::unique_lock lock(mutex_);
    if (end_.wait_until(lock, limit, [this] { return ended_; })) {
      lock.unlock();
      return thread_.join();
    }
    abandoned_ = true;
    any_abandoned = true;
    thread_.detach();
    log::warning("tracker '" + tracker_.name +
                 "' is still busy, and the run does not wait for it; metrics that it has not "
                 "received will be sent when the run resumes");
  }

 private:
  /// Resumes after the last acknowledged line. If a power cut removed acknowledged lines, starts at
  /// the end of the journal: the run writes those lines again, and they are sent again. Stores that
  /// place, because otherwise the next start would take lines that were never sent for
  /// acknowledged.
  void load_offset() {
    // Only once, so that a tracker does not write to a folder that takes the run folder's place.
    fs::make_folders(offset_file_.parent_path());
    if (!std::filesystem::exists(offset_file_)) return;
    const auto acknowledged = read_json(offset_file_).at("lines").get<int64_t>();
    std::ifstream file(journal_, std::ios::binary);
    for (std::string line; lines_ < acknowledged && std::getline(file, line) && !file.eof();) {
      ++lines_;
      bytes_ += int64_t(line.size()) + 1;
    }
    if (lines_ < acknowledged) save_offset();
  }

  void save_offset() const {
    if (abandoned_) return;  // another process may have resumed the run
    fs::write_atomically(offset_file_, Json{{"lines", lines_}}.dump());
  }

  void work() {
    if (!attempt("start", [this] { call(*tracker_.tracker, "start", &Tracker::start, run_); }))
      return;
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return journal_grew_ || finishing_; });
        journal_grew_ = false;
      }
      if (!send_all()) return;
      std::lock_guard lock(mutex_);
      if (finishing_ && !journal_grew_) break;
    }
    attempt("finish", [this] { call(*tracker_.tracker, "finish", &Tracker::finish, status_); });
  }

  /// Reads up to kEventsPerCall complete lines after the acknowledged ones. Sets `end` to the
  /// offset after the last line read.
  std::vector<Event> read_events(int64_t& end) const {
    std::vector<Event> events;
    std::ifstream file(journal_, std::ios::binary);
    file.seekg(end = bytes_);
    for (std::string line;
         events.size() < kEventsPerCall && std::getline(file, line) && !file.eof();) {
      events.push_back(parse_event(line, lines_ + int64_t(events.size())));
      end += int64_t(line.size()) + 1;
    }
    return events;
  }

  bool send_all() {
    while (true) {
      int64_t end = 0;
      std::vector<Event> events;
      if (!attempt("read the journal", [&] { events = read_events(end); })) return false;
      if (events.empty()) return true;
      size_t first = 0;  // the first event that the tracker has neither accepted nor rejected
      const bool sent = attempt("deliver", [&] { deliver(events, first); });
      if (!sent) return false;
      lines_ += int64_t(events.size());
      bytes_ = end;
      if (!attempt("save its offset", [this] { save_offset(); })) return false;
    }
  }

  /// Delivers events[first] and the events after it. Skips events that the tracker rejects, and
  /// advances `first` beyond them, so that a retry does not deliver them again.
  void deliver(const std::vector<Event>& events, size_t& first) {
    while (first < events.size()) {
      try {
        return checked::deliver(*tracker_.tracker, std::span<const Event>(events).subspan(first));
      } catch (const Rejected& rejected) {
        if (rejected.index >= events.size() - first)
          throw Error(c10::str("it rejected event ", rejected.index, " of ", events.size() - first,
                               " (events are counted from 0): ", rejected.what()));
        first += rejected.index + 1;
        log::warning("tracker '" + tracker_.name + "' rejected step " +
                     std::to_string(events[first - 1].step) + ": " + rejected.what());
      }
    }
  }

  /// Calls `action` until it succeeds, with capped exponential backoff. Returns false if the next
  /// attempt would be after the deadline set by finish().
  template <class Action>
  bool attempt(const char* what, Action action) {
    double wait = kFirstRetry;
    for (bool warned = false;; warned = true) {
      std::string cause;
      double pause = wait;
      try {
        action();
        return true;
      } catch (const RetryAfter& retry) {
        cause = retry.what();
        pause = pause_of(retry);
      } catch (const std::exception& error) {
        cause = error.what();
      } catch (...) {
        cause = "threw a value that is not a std::exception";
      }
      if (!warned)
        log::warning("tracker '" + tracker_.name + "' cannot " + what + ", retrying: " + cause);
      wait = std::min(2 * wait, kLongestRetry);
      std::unique_lock lock(mutex_);
      const auto until = clock_->now() + clock_duration(pause);
      if (finishing_ && until > deadline_) {
        log::warning(
            "tracker '" + tracker_.name +
            "' has not received all metrics; the rest will be sent from metrics.jsonl when "
            "the run resumes: " +
            cause);
        return false;
      }
      const bool was_finishing = finishing_;
      clock_->wait_until(wake_, lock, until, [&] { return finishing_ && !was_finishing; });
      // When the run ends, retry at once, because the pause may be longer than the time left.
      if (finishing_ && !was_finishing) wait = kFirstRetry;
    }
  }

  NamedTracker tracker_;
  RunInfo run_;
  std::shared_ptr<SenderClock> clock_;
  std::filesystem::path journal_, offset_file_;
  int64_t lines_ = 0, bytes_ = 0;  // acknowledged
  std::mutex mutex_;
  std::condition_variable wake_, end_;
  bool ended_ = false;
  std::atomic<bool> abandoned_{false};
  bool journal_grew_ = true;  // a resumed run may have unsent lines
  bool finishing_ = false;
  RunStatus status_ = RunStatus::failed;
  SenderClock::Time deadline_{};
  std::thread thread_;
};

TrackerSender::TrackerSender(std::vector<NamedTracker> trackers, RunInfo run,
                             std::filesystem::path journal, std::shared_ptr<SenderClock> clock)
    : clock_(std::move(clock)) {
  for (NamedTracker& tracker : trackers)
    workers_.push_back(std::make_shared<Worker>(std::move(tracker), run, journal, clock_));
  for (const auto& worker : workers_) worker->start();
}

TrackerSender::~TrackerSender() {
  finish(RunStatus::failed, 0);
}

void TrackerSender::notify() {
  for (auto& worker : workers_) worker->notify();
}

void TrackerSender::finish(RunStatus status, double seconds) {
  const auto deadline = clock_->now() + clock_duration(seconds);
  for (auto& worker : workers_) worker->begin_finish(status, deadline);
  const auto limit = std::chrono::steady_clock::now() + kLongestEnd;
  for (auto& worker : workers_) worker->end(limit);
  workers_.clear();
}

bool has_busy_trackers() {
  return any_abandoned;
}

}  // namespace dsv3
