// Estimates memory and traffic from the sizes of the segments. docs/strategies.md explains the
// formulas.
#include <ATen/ATen.h>

#include "strategy.h"

namespace dsv3::data_parallel {
namespace {

/// Bytes of one unit on a rank: those that stay allocated, those of its values and gradients while
/// it is in use, and those of the sum of its gradients while it is in progress.
struct UnitBytes {
  int64_t held = 0, gradients_held = 0;
  int64_t values_in_use = 0, gradients_in_use = 0, reduction = 0;
};

/// Bytes that a rank sends when each of `ranks` ranks receives another 1 / ranks of `bytes` from
/// it.
int64_t sent(int64_t bytes, int64_t ranks) {
  return bytes / ranks * (ranks - 1);
}

void add(UnitBytes& total, const Segment& segment, const Settings& settings) {
  const SegmentBytes bytes = segment.bytes();
  const Place& place = segment.place();
  total.held += bytes.master + bytes.copy + (segment.frees_values() ? 0 : bytes.values);
  total.gradients_held += bytes.reduced + (segment.frees_gradients() ? 0 : bytes.gradients);
  if (segment.frees_values()) total.values_in_use += bytes.values;
  if (segment.frees_gradients()) total.gradients_in_use += bytes.gradients;
  const int64_t width = int64_t(c10::elementSize(settings.reduce));
  const int64_t part = segment.part() * (segment.sharded() ? place.shard_ranks : 1);
  if (segment.sharded() || place.rows() > 1) total.reduction += part * width;
  // Gradients are copied to be cut into pieces, or to be converted.
  const bool in_pieces = segment.sharded() && bytes.gradients > settings.bucket_bytes;
  if (in_pieces || (width != 4 && (segment.sharded() || place.rows() > 1)))
    total.reduction += part * width;
  if (segment.frees_gradients()) total.reduction += segment.part() * 4;
}

/// The most that the units need beyond what they hold, over the units whose backward pass may run.
/// Meanwhile, the gradients of the unit before it in the backward pass are being summed, and the
/// values of those after it are being gathered.
int64_t peak_in_use(const std::vector<UnitBytes>& units, int64_t prefetch) {
  int64_t peak = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    int64_t values = units[i].values_in_use;
    for (size_t ahead = 1; ahead <= size_t(prefetch) && ahead <= i; ++ahead)
      values += units[i - ahead].values_in_use;
    int64_t sums = units[i].reduction;
    if (i + 1 < units.size())
      sums = std::max(sums, units[i + 1].reduction + units[i + 1].gradients_in_use);
    peak = std::max(peak, units[i].gradients_in_use + values + sums);
  }
  return peak;
}

void add_traffic(Cost& cost, const Segment& segment, bool needed_in_backward,
                 const Settings& settings) {
  const SegmentBytes bytes = segment.bytes();
  const Place& place = segment.place();
  const int64_t width = int64_t(c10::elementSize(settings.reduce));
  int64_t each_microbatch = 0, each_step = 0;
  const int64_t row_sum = sent(bytes.gradients / 4 * width, place.shard_ranks);
  (segment.frees_gradients() ? each_microbatch : each_step) += row_sum;
  each_step += sent(segment.part() * width, place.rows()) + sent(segment.part() * 4, place.rows());
  const int64_t gather = sent(bytes.values, place.shard_ranks);
  if (!segment.frees_values())
    each_step += gather;
  else
    each_microbatch += gather * (settings.reshard_after_forward && needed_in_backward ? 2 : 1);
  cost.bytes_moved_per_microbatch += each_microbatch;
  cost.bytes_moved_per_step += each_step + each_microbatch;
}

}  // namespace

Cost DataParallel::estimate(std::span<const UnitSpec> units, int ranks) const {
  std::map<int64_t, Place> places;
  std::vector<UnitBytes> bytes;
  Cost cost;
  for (const UnitSpec& unit : units) {
    UnitBytes& total = bytes.emplace_back();
    for (const Segment& segment :
         segments_of(unit, 0, 0, ranks, settings_, context_.compute_dtype, places)) {
      add(total, segment, settings_);
      add_traffic(cost, segment, unit.needed_in_backward, settings_);
      if (settings_.offload_optimizer) cost.host_bytes += segment.part() * 4;
    }
    cost.bytes_held += total.held;
    cost.bytes_peak += total.held + total.gradients_held;
  }
  cost.bytes_peak += peak_in_use(bytes, settings_.prefetch);
  cost.state_on_host = settings_.offload_optimizer;
  return cost;
}

}  // namespace dsv3::data_parallel
