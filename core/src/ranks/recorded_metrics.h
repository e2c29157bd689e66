// Reduces the metrics of a step over ranks.
#pragma once

#include <vector>

#include <dsv3/runtime/ranks.h>

#include "sdk/metric_sink.h"

namespace dsv3 {

/// Metrics that a step has recorded, reduced over ranks.
struct RecordedMetrics {
  std::vector<std::string> names;  ///< sorted
  at::Tensor values;               ///< float64 [names], on the device
};

/// Takes what the ranks have recorded since MetricSink::open(), and reduces it over them. Ranks may
/// have recorded different metrics, but all must have opened the sink. The host does not wait for a
/// GPU. Collective.
RecordedMetrics take_metrics(MetricSink& sink, const Ranks& ranks, at::Device device);

}  // namespace dsv3
