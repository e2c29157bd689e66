// Metrics that components record during training.
#pragma once

#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// How the core combines the values that are recorded under one name in one step, over layers,
/// micro-batches and ranks. `rms` is the root of the mean square.
enum class Reduce { mean = 1, rms, sum, max, min };

class MetricSink;

/// Records metrics of the current step, which the core writes to metrics.jsonl and sends to
/// trackers. Cheap to copy. Thread-safe.
class Metrics {
 public:
  /// Records nothing.
  Metrics() = default;
  /// For the core.
  explicit Metrics(std::shared_ptr<MetricSink> sink) : sink_(std::move(sink)) {}

  /// Whether scalar() records values. True only in steps whose metrics are logged, and never in
  /// validation, generation or a recomputed forward pass. Compute metrics only if it is true.
  bool wanted() const;
  /// Records a scalar of any dtype, on any device. The host does not wait for it. `name` contains a
  /// group, e.g. "moe/entropy". All values of one name are combined into one metric. Add
  /// "/<layer>" to the name for one metric per layer. `weight` applies to means and root mean
  /// squares. Throws dsv3::Error if `value` is not a scalar, or if the name is invalid, belongs to
  /// the core (train/, val/, throughput/, data/, memory/, system/), or was recorded with another
  /// `reduce`.
  void scalar(const std::string& name, const at::Tensor& value, Reduce reduce = Reduce::mean,
              double weight = 1) const;
  void scalar(const std::string& name, double value, Reduce reduce = Reduce::mean,
              double weight = 1) const;

 private:
  std::shared_ptr<MetricSink> sink_;
};

}  // namespace dsv3
