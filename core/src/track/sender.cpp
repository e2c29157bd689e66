#include "track/sender.h"

#include <condition_variable>
#include <fstream>
#include <thread>

#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "call/checked.h"

namespace dsv3 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kEventsPerCall = 200;
constexpr double kFirstRetry = 0.5, kLongestRetry = 60;  // seconds

Clock::duration clock_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

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
class TrackerSender::Worker {
 public:
  Worker(NamedTracker tracker, const RunInfo& run, std::filesystem::path journal)
      : tracker_(std::move(tracker)),
        run_(run),
        journal_(std::move(journal)),
        offset_file_(std::filesystem::path(run.folder) / "trackers" / (tracker_.name + ".json")) {
    load_offset();
    thread_ = std::thread([this] { work(); });
  }

  ~Worker() {
    if (!thread_.joinable()) return;
    begin_finish(RunStatus::failed, Clock::now());
    join();
  }

  void notify() {
    const std::lock_guard lock(mutex_);
    journal_grew_ = true;
    wake_.notify_one();
  }

  /// Must be called only once, because the sender thread reads these values without the lock
  /// afterwards.
  void begin_finish(RunStatus status, Clock::time_point deadline) {
    const std::lock_guard lock(mutex_);
    status_ = status;
    deadline_ = deadline;
    finishing_ = true;
    wake_.notify_one();
  }

  void join() { thread_.join(); }

 private:
  /// Resumes after the last acknowledged line. If a power cut removed acknowledged lines, starts at
  /// the end of the journal: the run writes those lines again, and they are sent again.
  void load_offset() {
    if (!std::filesystem::exists(offset_file_)) return;
    const auto acknowledged = read_json(offset_file_).at("lines").get<int64_t>();
    std::ifstream file(journal_, std::ios::binary);
    for (std::string line; lines_ < acknowledged && std::getline(file, line) && !file.eof();) {
      ++lines_;
      bytes_ += int64_t(line.size()) + 1;
    }
  }

  void save_offset() const {
    fs::make_folders(offset_file_.parent_path());
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
      size_t first = 0;
      const bool sent = attempt("deliver", [&] {
        try {
          checked::deliver(*tracker_.tracker, std::span<const Event>(events).subspan(first));
        } catch (const Rejected& rejected) {
          log::warning("tracker '" + tracker_.name + "' rejected step " +
                       std::to_string(events.at(first + rejected.index).step) + ": " +
                       rejected.what());
          first += rejected.index + 1;
          if (first < events.size()) throw RetryAfter("the rest follows", 0);
        }
      });
      if (!sent) return false;
      lines_ += int64_t(events.size());
      bytes_ = end;
      if (!attempt("save its offset", [this] { save_offset(); })) return false;
    }
  }

  /// Calls `action` until it succeeds, with capped exponential backoff. Returns false if the
  /// deadline set by finish() passes first.
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
        pause = retry.seconds;
      } catch (const std::exception& error) {
        cause = error.what();
      } catch (...) {
        cause = "threw a value that is not a std::exception";
      }
      if (!warned && pause > 0)
        log::warning("tracker '" + tracker_.name + "' cannot " + what + ", retrying: " + cause);
      wait = std::min(2 * wait, kLongestRetry);
      std::unique_lock lock(mutex_);
      const auto until = Clock::now() + clock_duration(pause);
      wake_.wait_until(lock, until,
                       [&] { return finishing_ && (Clock::now() >= until || deadline_ < until); });
      if (finishing_ && Clock::now() >= std::min(until, deadline_) && deadline_ < until) {
        log::warning(
            "tracker '" + tracker_.name +
            "' has not received all metrics; the rest will be sent from metrics.jsonl when "
            "the run resumes: " +
            cause);
        return false;
      }
    }
  }

  NamedTracker tracker_;
  RunInfo run_;
  std::filesystem::path journal_, offset_file_;
  int64_t lines_ = 0, bytes_ = 0;  // acknowledged
  std::mutex mutex_;
  std::condition_variable wake_;
  bool journal_grew_ = true;  // a resumed run may have unsent lines
  bool finishing_ = false;
  RunStatus status_ = RunStatus::failed;
  Clock::time_point deadline_{};
  std::thread thread_;
};

TrackerSender::TrackerSender(std::vector<NamedTracker> trackers, RunInfo run,
                             std::filesystem::path journal) {
  for (NamedTracker& tracker : trackers)
    workers_.push_back(std::make_unique<Worker>(std::move(tracker), run, journal));
}

TrackerSender::~TrackerSender() = default;

void TrackerSender::notify() {
  for (auto& worker : workers_) worker->notify();
}

void TrackerSender::finish(RunStatus status, double seconds) {
  const auto deadline = Clock::now() + clock_duration(seconds);
  for (auto& worker : workers_) worker->begin_finish(status, deadline);
  for (auto& worker : workers_) worker->join();
  workers_.clear();
}

}  // namespace dsv3
