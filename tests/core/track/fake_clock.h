// A clock for senders that never sleeps.
#pragma once

#include <algorithm>
#include <vector>

#include "track/sender.h"

/// Time stands still until `flow()`. From then on, every wait ends at once and moves the time to
/// its end. Thread-safe.
class FakeClock final : public dsv3::SenderClock {
 public:
  Time now() override {
    const std::lock_guard lock(mutex_);
    return now_;
  }
  void wait_until(std::condition_variable& wake, std::unique_lock<std::mutex>& lock, Time until,
                  const std::function<bool()>& stop) override {
    {
      const std::lock_guard guard(mutex_);
      waits_.push_back(std::chrono::duration<double>(until - now_).count());
    }
    while (!stop()) {
      {
        const std::lock_guard guard(mutex_);
        if (flows_) {
          now_ = std::max(now_, until);
          return;
        }
        ++waiting_;
        changed_.notify_all();
      }
      wake.wait(lock);
      const std::lock_guard guard(mutex_);
      --waiting_;
    }
  }

  /// Makes the time move. Waits that have already begun notice it when they are woken.
  void flow() {
    const std::lock_guard guard(mutex_);
    flows_ = true;
  }
  /// Blocks until `count` threads are waiting.
  void await_waiting(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ == count; });
  }
  /// The length in seconds of every wait so far.
  std::vector<double> waits() {
    const std::lock_guard guard(mutex_);
    return waits_;
  }
  /// Seconds since the clock was made.
  double elapsed() { return std::chrono::duration<double>(now() - kStart).count(); }

 private:
  static constexpr Time kStart{std::chrono::hours(1000)};
  std::mutex mutex_;
  std::condition_variable changed_;
  Time now_ = kStart;
  bool flows_ = false;
  int waiting_ = 0;
  std::vector<double> waits_;
};
