// Collects the metrics that components record in a step.
#pragma once

#include <atomic>
#include <map>
#include <mutex>

#include <dsv3/sdk/metrics.h>

namespace dsv3 {

class MetricSink {
 public:
  /// What was recorded under one name.
  struct Entry {
    Reduce reduce;
    at::Tensor value;   ///< float64 scalar: weighted sum, sum of squares, maximum or minimum
    double weight = 0;  ///< sum of the weights
    bool is_mean() const;
  };

  /// From open() to the next take(), values are recorded.
  void open() { open_ = true; }
  bool is_open() const { return open_; }
  /// Implements Metrics::scalar.
  void add(const std::string& name, const at::Tensor& value, Reduce reduce, double weight);
  /// Closes the sink. Returns what was recorded, combined over layers and micro-batches.
  std::map<std::string, Entry> take();

 private:
  std::atomic<bool> open_{false};
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;
};

}  // namespace dsv3
