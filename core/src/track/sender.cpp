#include "track/sender.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <limits>
#include <mutex>
#include <thread>

#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

namespace dsv3 {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr size_t kEventsACall = 200;
constexpr double kFirstRetry = 0.5, kLongestRetry = 60;  // seconds

double number_of(const Json& value) {
  if (value.is_number()) return value.get<double>();
  const auto text = value.get<std::string>();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  throw Error("'" + text + "' is not a number");
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
      event.metrics.emplace_back(key, number_of(value));
  }
  return event;
}

/// One tracker: a thread, its place in the journal, and the retries.
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
    {
      std::lock_guard lock(mutex_);
      ++news_;
    }
    wake_.notify_one();
  }

  /// Once: the thread reads what it says without the lock.
  void begin_finish(RunStatus status, Clock::time_point deadline) {
    {
      std::lock_guard lock(mutex_);
      status_ = status;
      deadline_ = deadline;
      finishing_ = true;
    }
    wake_.notify_one();
  }

  void join() { thread_.join(); }

 private:
  /// A power cut may have taken lines that were acknowledged: those are delivered again.
  void load_offset() {
    if (!std::filesystem::exists(offset_file_)) return;
    const auto acknowledged = read_json(offset_file_).at("lines").get<int64_t>();
    std::ifstream file(journal_, std::ios::binary);
    for (std::string line; lines_ < acknowledged && std::getline(file, line) && !file.eof();) {
      ++lines_;
      bytes_ += static_cast<int64_t>(line.size()) + 1;
    }
  }

  void save_offset() const {
    fs::make_folders(offset_file_.parent_path());
    fs::write_atomically(offset_file_, Json{{"lines", lines_}}.dump());
  }

  void work() {
    if (!attempt("start", [this] { tracker_.tracker->start(run_); })) return;
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return news_ > 0 || finishing_; });
        news_ = 0;
      }
      if (!send_all()) return;
      std::lock_guard lock(mutex_);
      if (finishing_ && news_ == 0) break;
    }
    attempt("finish", [this] { tracker_.tracker->finish(status_); });
  }

  /// Complete lines behind the acknowledged offset, at most kEventsACall; `end` is the offset
  /// behind them.
  std::vector<Event> read_events(int64_t& end) const {
    std::vector<Event> events;
    std::ifstream file(journal_, std::ios::binary);
    file.seekg(bytes_);
    end = bytes_;
    std::string line;
    while (events.size() < kEventsACall && std::getline(file, line) && !file.eof()) {
      events.push_back(parse_event(line, lines_ + static_cast<int64_t>(events.size())));
      end += static_cast<int64_t>(line.size()) + 1;
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
          tracker_.tracker->deliver(std::span<const Event>(events).subspan(first));
        } catch (const Rejected& rejected) {
          log::warning("tracker '" + tracker_.name + "' refused step " +
                       std::to_string(events.at(first + rejected.index).step) + ": " +
                       rejected.what());
          first += rejected.index + 1;
          if (first < events.size()) throw RetryAfter("the rest follows", 0);
        }
      });
      if (!sent) return false;
      lines_ += static_cast<int64_t>(events.size());
      bytes_ = end;
      if (!attempt("keep its offset", [this] { save_offset(); })) return false;
    }
  }

  /// Calls `action` until it succeeds, with capped exponential waits; false = the deadline of
  /// finish() came first.
  template <class Action>
  bool attempt(const char* what, Action action) {
    double wait = kFirstRetry;
    for (bool said = false;; said = true) {
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
        cause = "an exception that is not a std::exception";
      }
      if (!said && pause > 0)
        log::warning("tracker '" + tracker_.name + "' cannot " + what +
                     ", will try again: " + cause);
      wait = std::min(2 * wait, kLongestRetry);
      std::unique_lock lock(mutex_);
      const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(pause));
      wake_.wait_until(lock, until,
                       [&] { return finishing_ && (Clock::now() >= until || deadline_ < until); });
      if (finishing_ && Clock::now() >= std::min(until, deadline_) && deadline_ < until) {
        log::warning("tracker '" + tracker_.name +
                     "' did not take everything; metrics.jsonl keeps it and it "
                     "is sent when the run goes on: " +
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
  int64_t news_ = 1;  // a resumed run may have lines to send at once
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
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
  for (auto& worker : workers_) worker->begin_finish(status, deadline);
  for (auto& worker : workers_) worker->join();
  workers_.clear();
}

}  // namespace dsv3
