#include "batch.h"

#include <cmath>
#include <span>

namespace mlflow {
namespace {

constexpr size_t kMetrics = 1000, kOthers = 100, kBytes = 900'000;

using Reject = std::function<void(size_t, const std::string&)>;

const char* list_of(Entry::Kind kind) {
  return kind == Entry::Kind::metric      ? "metrics"
         : kind == Entry::Kind::parameter ? "params"
                                          : "tags";
}

/// Returns how many entries from the start of `sizes` fit into one request.
size_t fitting(std::span<const Entry> entries, std::span<const size_t> sizes) {
  size_t count = 0, bytes = 0, metrics = 0, parameters = 0, tags = 0;
  for (; count < entries.size(); ++count) {
    const Entry::Kind kind = entries[count].kind;
    size_t& same = kind == Entry::Kind::metric      ? metrics
                   : kind == Entry::Kind::parameter ? parameters
                                                    : tags;
    const size_t limit = kind == Entry::Kind::metric ? kMetrics : kOthers;
    bytes += sizes[count] + 1;
    if (++same > limit || count == kMetrics || (count > 0 && bytes > kBytes)) break;
  }
  return count;
}

/// Throws unless the run can receive entries. A batch that a deleted run rejects has no fault.
void require_active(Api& api, const std::string& run_id) {
  const Json run = api.get("runs/get", {{"run_id", run_id}});
  if (run.at("run").at("info").value("lifecycle_stage", "active") != "active")
    throw dsv3::Error("run " + run_id + " was deleted in MLflow; restore it there");
}

/// Sends entries that fit into one request. `first` is the index of the first one.
void send(Api& api, const std::string& run_id, std::span<const Entry> entries, size_t first,
          const Reject& reject) {
  if (entries.empty()) return;
  Json body = {{"run_id", run_id}};
  for (const Entry& entry : entries) body[list_of(entry.kind)].push_back(entry.content);
  try {
    api.post("runs/log-batch", body);
  } catch (const ApiError& error) {
    if (error.status != 400 && error.status != 413) throw;
    require_active(api, run_id);
    if (entries.size() == 1) return reject(first, error.what());
    const size_t half = entries.size() / 2;
    send(api, run_id, entries.first(half), first, reject);
    send(api, run_id, entries.subspan(half), first + half, reject);
  }
}

}  // namespace

Json number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

void log_batch(Api& api, const std::string& run_id, const std::vector<Entry>& entries,
               const Reject& reject) {
  std::vector<size_t> sizes;
  for (const Entry& entry : entries)
    sizes.push_back(entry.content.dump(-1, ' ', false, Json::error_handler_t::replace).size());
  const std::span<const Entry> all(entries);
  for (size_t first = 0; first < all.size();) {
    const size_t count = fitting(all.subspan(first), std::span(sizes).subspan(first));
    send(api, run_id, all.subspan(first, count), first, reject);
    first += count;
  }
}

}  // namespace mlflow
