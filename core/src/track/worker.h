// A thread that calls a tracker, and calls it again if that fails.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "track/feed.h"

namespace dsv3 {

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

/// A journal and what sends its lines. `send` gets lines and the number of the first one.
struct Channel {
  std::string what;  ///< for messages: "deliver metrics"
  Feed feed;
  size_t lines_per_call = 1;
  std::function<void(const std::vector<std::string>& lines, int64_t first)> send;
};

/// Sends the lines of its channels until begin_finish(). The thread shares ownership of the
/// worker, because it may outlive its owner.
class SenderWorker : public std::enable_shared_from_this<SenderWorker> {
 public:
  struct Actions {
    std::function<void()> begin, end;  ///< before the first line and after the last one
    std::function<void()> begun;       ///< after `begin`; not repeated
  };
  /// `name` is the tracker's, and `stop` is requested when a call must end.
  SenderWorker(std::string name, std::vector<Channel> channels, Actions actions,
               std::shared_ptr<SenderClock> clock, std::stop_source stop);

  /// Starts the thread. Does nothing after end().
  void start();
  /// Says that a journal has grown.
  void notify();
  /// Sends what is left, and starts no attempt after `deadline`, nor one to begin after
  /// `begin_deadline`.
  void begin_finish(SenderClock::Time deadline, SenderClock::Time begin_deadline);
  /// Joins the thread. At `limit`, requests a stop, and a little later abandons the thread. Returns
  /// whether everything was sent.
  bool end(std::chrono::steady_clock::time_point limit);
  bool is_abandoned() const { return abandoned_; }
  /// Why it gave up; "" if it did not. Call this after end().
  const std::string& cause() const { return cause_; }

 private:
  void work();
  bool run();
  bool send_all(Channel& channel);
  bool attempt(const std::string& what, const std::function<void()>& action);
  bool pause(double seconds, const std::string& cause, double& next);

  const std::string name_;
  std::vector<Channel> channels_;
  const Actions actions_;
  const std::shared_ptr<SenderClock> clock_;
  std::stop_source stop_;
  std::mutex mutex_;
  std::condition_variable wake_, end_;
  bool ended_ = false, closed_ = false, complete_ = false;
  std::atomic<bool> abandoned_{false};
  bool journal_grew_ = true;  // a resumed run may have unsent lines
  bool begun_ = false, finishing_ = false;
  std::string cause_;
  SenderClock::Time deadline_{};      // of the next attempt
  SenderClock::Time end_deadline_{};  // once `begin` has succeeded
  std::thread thread_;
};

}  // namespace dsv3
