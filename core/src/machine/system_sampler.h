// Samples this machine at regular times while a run trains.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "machine/system_metrics.h"

namespace dsv3 {

/// Takes samples on a thread of its own, because a driver or a file system may take long to answer.
class SystemSampler {
 public:
  /// Takes the first sample after `seconds`. `folder` is the run's.
  SystemSampler(std::filesystem::path folder, double seconds);

  /// Returns the metrics of the samples since the previous call; empty if there are none.
  SystemMetrics take();
  /// Takes a last sample, waits for it, for 2 s at most, and returns the same as take(). A run that
  /// is shorter than the interval has metrics, too.
  SystemMetrics take_last();

 private:
  void run(const std::stop_token& stop);

  const std::filesystem::path folder_;
  const std::chrono::duration<double> interval_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  SystemSample first_, previous_;  // those before samples_
  std::vector<SystemSample> samples_;
  bool ended_ = false;
  std::jthread thread_;  // the last member, because it uses the others
};

}  // namespace dsv3
