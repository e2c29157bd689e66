#include "track/worker.h"

#include <algorithm>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {
namespace {

constexpr double kFirstRetry = 0.5, kLongestRetry = 60;               // seconds
constexpr double kShortestPause = 0.1, kLongestPause = 24 * 60 * 60;  // that a tracker may request
constexpr std::chrono::milliseconds kStopTime{1'000};  // for a call to end after a request to stop

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

SenderWorker::SenderWorker(std::string name, std::vector<Channel> channels, Actions actions,
                           std::shared_ptr<SenderClock> clock, std::stop_source stop)
    : name_(std::move(name)),
      channels_(std::move(channels)),
      actions_(std::move(actions)),
      clock_(std::move(clock)),
      stop_(std::move(stop)) {}

void SenderWorker::start() {
  const std::scoped_lock lock(mutex_);
  if (closed_) return;
  thread_ = std::thread([self = shared_from_this()] { self->work(); });
}

void SenderWorker::work() {
  const bool complete = run();
  const std::scoped_lock lock(mutex_);
  complete_ = complete;
  ended_ = true;
  end_.notify_one();
}

void SenderWorker::notify() {
  const std::scoped_lock lock(mutex_);
  journal_grew_ = true;
  wake_.notify_one();
}

void SenderWorker::begin_finish(SenderClock::Time deadline, SenderClock::Time begin_deadline) {
  const std::scoped_lock lock(mutex_);
  end_deadline_ = deadline;
  deadline_ = begun_ ? deadline : std::min(deadline, begin_deadline);
  finishing_ = true;
  wake_.notify_one();
}

bool SenderWorker::end(std::chrono::steady_clock::time_point limit) {
  std::unique_lock lock(mutex_);
  closed_ = true;
  if (!thread_.joinable()) return channels_.empty();
  const auto has_ended = [this] { return ended_; };
  if (!end_.wait_until(lock, limit - kStopTime, has_ended)) {
    lock.unlock();
    stop_.request_stop();
    lock.lock();
    if (!end_.wait_until(lock, limit, has_ended)) {
      abandoned_ = true;
      thread_.detach();
      return false;
    }
  }
  lock.unlock();
  thread_.join();
  return complete_;
}

/// Returns false if it gave up.
bool SenderWorker::run() {
  if (!attempt("start", actions_.begin)) return false;
  if (actions_.begun) actions_.begun();
  {
    const std::scoped_lock lock(mutex_);
    begun_ = true;
    deadline_ = end_deadline_;
  }
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return journal_grew_ || finishing_; });
      journal_grew_ = false;
    }
    for (Channel& channel : channels_)
      if (!send_all(channel)) return false;
    const std::scoped_lock lock(mutex_);
    if (finishing_ && !journal_grew_) break;
  }
  return attempt("finish", actions_.end);
}

bool SenderWorker::send_all(Channel& channel) {
  while (true) {
    std::vector<std::string> lines;
    if (!attempt("read " + channel.feed.journal().string(),
                 [&] { lines = channel.feed.read(channel.lines_per_call); }))
      return false;
    if (lines.empty()) return true;
    if (!attempt(channel.what, [&] { channel.send(lines, channel.feed.acknowledged()); }))
      return false;
    // Another process may have resumed the run of an abandoned thread.
    if (!attempt("save its offset", [&] { channel.feed.acknowledge(lines, !abandoned_); }))
      return false;
  }
}

/// Calls `action` until it succeeds, with capped exponential backoff. Returns false if the next
/// attempt would be after the deadline set by begin_finish().
bool SenderWorker::attempt(const std::string& what, const std::function<void()>& action) {
  double next = kFirstRetry;
  for (bool warned = false;; warned = true) {
    std::string cause;
    double seconds = next;
    try {
      if (action) action();
      return true;
    } catch (const RetryAfter& retry) {
      cause = retry.what();
      seconds = pause_of(retry);
    } catch (const std::exception& error) {
      cause = error.what();
    } catch (...) {
      cause = "threw a value that is not a std::exception";
    }
    if (!warned) log::warning("tracker '" + name_ + "' cannot " + what + ", retrying: " + cause);
    if (!pause(seconds, cause, next)) return false;
  }
}

/// Waits before another attempt, and sets the pause after it. Returns false if it is too late for
/// one.
bool SenderWorker::pause(double seconds, const std::string& cause, double& next) {
  next = std::min(2 * next, kLongestRetry);
  std::unique_lock lock(mutex_);
  const auto until = clock_->now() + clock_duration(seconds);
  if (stop_.stop_requested() || (finishing_ && until > deadline_)) {
    cause_ = cause;
    return false;
  }
  const bool was_finishing = finishing_;
  clock_->wait_until(wake_, lock, until, [&] { return finishing_ && !was_finishing; });
  // When the run ends, retry at once, because the pause may be longer than the time left.
  if (finishing_ && !was_finishing) next = kFirstRetry;
  return true;
}

}  // namespace dsv3
