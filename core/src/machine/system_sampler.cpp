#include "machine/system_sampler.h"

#include <dsv3/sdk/log.h>

namespace dsv3 {

SystemSampler::SystemSampler(std::filesystem::path folder, double seconds)
    : folder_(std::move(folder)), interval_(seconds), thread_([this](const std::stop_token& stop) {
        try {
          run(stop);
        } catch (const std::exception& error) {
          log::warning(std::string("system metrics are no longer recorded: ") + error.what());
        }
      }) {}

void SystemSampler::run(const std::stop_token& stop) {
  const Nvml nvml;
  if (!nvml.problem().empty()) log::debug("no system metrics of GPUs: " + nvml.problem());
  SystemSample sample = sample_system(folder_, nvml);
  std::unique_lock lock(mutex_);
  first_ = previous_ = std::move(sample);
  while (!stop.stop_requested()) {
    changed_.wait_for(lock, stop, interval_, [] { return false; });
    lock.unlock();
    sample = sample_system(folder_, nvml);
    lock.lock();
    samples_.push_back(std::move(sample));
  }
  ended_ = true;
  changed_.notify_all();
}

SystemMetrics SystemSampler::take() {
  const std::lock_guard lock(mutex_);
  if (samples_.empty()) return {};
  SystemMetrics metrics = system_metrics(first_, previous_, samples_);
  previous_ = std::move(samples_.back());
  samples_.clear();
  return metrics;
}

SystemMetrics SystemSampler::take_last() {
  thread_.request_stop();
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(2), [this] { return ended_; });
  }
  return take();
}

}  // namespace dsv3
