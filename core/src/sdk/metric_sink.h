// Collects the metrics that components record in a step.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/metrics.h>

namespace dsv3 {

/// Metrics that a step has recorded, reduced over ranks.
struct RecordedMetrics {
  std::vector<std::string> names;  ///< sorted
  at::Tensor values;               ///< float64 [names], on the device
};

class MetricSink {
 public:
  /// From open() to the next take(), values are recorded.
  void open() { open_ = true; }
  bool is_open() const { return open_; }
  /// Implements Metrics::scalar.
  void add(const std::string& name, const at::Tensor& value, Reduce reduce, double weight);
  /// Collective. Reduces the recorded values over layers, micro-batches and ranks, and closes the
  /// sink. The host does not wait for a GPU.
  RecordedMetrics take(const Ranks& ranks, at::Device device);

 private:
  struct Entry {
    Reduce reduce;
    at::Tensor value;   // float64 scalar: weighted sum, sum of squares, maximum or minimum
    double weight = 0;  // sum of the weights
    bool is_mean() const;
  };

  /// Adds entries for metrics that only other ranks have recorded.
  void agree_on_names(Communicator& control, at::Device device);
  void reduce_over_ranks(Communicator& world, at::Device device);

  std::atomic<bool> open_{false};
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;
};

}  // namespace dsv3
