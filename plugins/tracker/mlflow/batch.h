// Sends metrics, parameters and tags in batches that MLflow accepts.
#pragma once

#include <functional>
#include <vector>

#include "api.h"

namespace mlflow {

constexpr size_t kLongestDigest = 36;  ///< of a dataset; MLflow rejects longer ones

/// An entry of runs/log-batch.
struct Entry {
  enum class Kind { metric = 1, parameter, tag };
  Kind kind = Kind::metric;
  Json content;
};

/// A number as MLflow takes it: NaN and infinities are strings.
Json number(double value);

/// Sends entries to a run, as few requests as the limits allow: 1000 metrics, 100 parameters and
/// 100 tags, and less than 1 MB. If the server rejects a batch, sends halves of it, until it has
/// found the entries at fault, which are passed to `reject` with their index and the server's
/// reason. Throws if the server accepts nothing for this run, because it was deleted for example.
void log_batch(Api& api, const std::string& run_id, const std::vector<Entry>& entries,
               const std::function<void(size_t index, const std::string& reason)>& reject);

}  // namespace mlflow
