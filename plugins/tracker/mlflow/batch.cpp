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

/// Sends the entries of one call.
class Sender {
 public:
  Sender(Api& api, const std::string& run_id, const Reject& reject)
      : api_(api), run_id_(run_id), reject_(reject) {}

  /// Sends entries that fit into one request. `first` is the index of the first one.
  void send(std::span<const Entry> entries, size_t first) {
    try {
      post(entries);
    } catch (const ApiError& error) {
      if (error.status != 400 && error.status != 413) throw;
      if (!accepts_valid_) require_accepts_valid();
      if (entries.size() == 1) return reject_(first, error.what());
      const size_t half = entries.size() / 2;
      send(entries.first(half), first);
      send(entries.subspan(half), first + half);
    }
  }

 private:
  void post(std::span<const Entry> entries) {
    Json body = {{"run_id", run_id_}};
    for (const Entry& entry : entries) body[list_of(entry.kind)].push_back(entry.content);
    api_.post("runs/log-batch", body);
  }

  /// Throws if the server rejects even a tag that the run has since its creation. The entries are
  /// then not at fault: the run was deleted, a quota is used up, or a proxy rejects the requests.
  void require_accepts_valid() {
    const Entry valid{Entry::Kind::tag, {{"key", "mlflow.source.type"}, {"value", "LOCAL"}}};
    try {
      post(std::span(&valid, 1));
    } catch (const ApiError& error) {
      throw dsv3::Error("run " + run_id_ + " receives nothing, because it was deleted in MLflow " +
                        "or the server rejects all entries: " + error.what());
    }
    accepts_valid_ = true;
  }

  Api& api_;
  const std::string& run_id_;
  const Reject& reject_;
  bool accepts_valid_ = false;
};

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
  Sender sender(api, run_id, reject);
  for (size_t first = 0; first < all.size();) {
    const size_t count = fitting(all.subspan(first), std::span(sizes).subspan(first));
    sender.send(all.subspan(first, count), first);
    first += count;
  }
}

}  // namespace mlflow
