// Estimates memory and traffic from the sizes of the segments. docs/strategies.md explains the
// formulas.
#include <ATen/ATen.h>

#include "strategy.h"

namespace dsv3::data_parallel {
namespace {

/// Bytes of one unit on a rank.
struct UnitBytes {
  int64_t held = 0, gradients_held = 0;             ///< that stay allocated
  int64_t values_in_use = 0, gradients_in_use = 0;  ///< while it is in use
  int64_t reduction = 0;                            ///< while its gradients are being summed
  int64_t gather = 0;                               ///< sent to gather its values for a use
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
  if (segment.frees_values()) {
    total.values_in_use += bytes.values;
    total.gather += sent(bytes.values, place.shard_ranks);
  }
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

/// Follows DataParallel through the forward and backward pass of one micro-batch.
class Rehearsal {
 public:
  Rehearsal(const ModelPlan& plan, const std::vector<UnitBytes>& bytes, const Settings& settings)
      : plan_(plan), settings_(settings) {
    for (size_t i = 0; i < bytes.size(); ++i)
      units_.push_back({.bytes = bytes[i], .needed = plan.units[i].needed_in_backward});
    forward();
    backward();
  }
  int64_t peak() const { return peak_; }          ///< besides what the units hold
  int64_t gathered() const { return gathered_; }  ///< bytes sent to gather parameters

 private:
  struct Unit {
    UnitBytes bytes;
    bool needed = true;
    bool has_values = false, keeps_values = false, has_gradients = false, is_reduced = false;
    int64_t unfinished = 0;
  };

  void gather(Unit& unit) {
    if (!unit.has_values) gathered_ += unit.bytes.gather;
    unit.has_values = true;
  }

  void measure() {
    int64_t bytes = reducing_ ? reducing_->bytes.reduction : 0;
    for (const Unit& unit : units_)
      bytes += (unit.has_values ? unit.bytes.values_in_use : 0) +
               (unit.has_gradients ? unit.bytes.gradients_in_use : 0);
    peak_ = std::max(peak_, bytes);
  }

  void forward() {
    for (const UnitUse& use : plan_.uses) {
      Unit& unit = units_[use.unit];
      gather(unit);
      ++unit.unfinished;
      unit.has_values = unit.needed && !settings_.reshard_after_forward;
    }
  }

  void backward() {
    for (size_t i = plan_.uses.size(); i-- > 0;) {
      Unit& unit = units_[plan_.uses[i].unit];
      if (unit.needed) gather(unit);
      prefetch(i);
      unit.has_gradients = true;
      measure();
      if (plan_.uses[i].has_inputs)
        finish(unit);
      else
        unit.keeps_values = true;  // because nothing reports the end of this use
    }
    for (Unit& unit : units_)
      if (!unit.is_reduced) reduce(unit);
  }

  /// Gathers the units of earlier uses than `i`, whose backward passes are next.
  void prefetch(size_t i) {
    for (int64_t count = settings_.prefetch; count > 0 && i-- > 0;) {
      Unit& unit = units_[plan_.uses[i].unit];
      if (!unit.needed) continue;
      gather(unit);
      --count;
    }
  }

  void finish(Unit& unit) {
    --unit.unfinished;
    if (!unit.keeps_values && (settings_.reshard_after_forward || unit.unfinished == 0))
      unit.has_values = false;
    if (unit.unfinished == 0) reduce(unit);
  }

  /// The previous sum of gradients ends when the next one starts.
  void reduce(Unit& unit) {
    if (reducing_) reducing_->has_gradients = false;
    unit.is_reduced = true;
    reducing_ = &unit;
    measure();
  }

  const ModelPlan& plan_;
  const Settings& settings_;
  std::vector<Unit> units_;
  Unit* reducing_ = nullptr;
  int64_t peak_ = 0, gathered_ = 0;
};

/// Adds the sums of gradients, and the gathers that are not in a Rehearsal.
void add_traffic(Cost& cost, const Segment& segment, const Settings& settings) {
  const SegmentBytes bytes = segment.bytes();
  const Place& place = segment.place();
  const int64_t width = int64_t(c10::elementSize(settings.reduce));
  const int64_t row_sum = sent(bytes.gradients / 4 * width, place.shard_ranks);
  if (segment.frees_gradients()) cost.bytes_moved_per_microbatch += row_sum;
  cost.bytes_moved_per_step +=
      row_sum + sent(segment.part() * width, place.rows()) + sent(segment.part() * 4, place.rows());
  if (!segment.frees_values()) cost.bytes_moved_per_step += sent(bytes.values, place.shard_ranks);
}

/// The groups are updated one after another.
MatrixCost cost_of(const std::vector<Matrices>& groups) {
  MatrixCost total;
  for (const Matrices& group : groups)
    for (const auto& [slices, matrices] : group) {
      const MatrixCost cost = MatrixUpdate(matrices, at::kMeta).cost();
      total = {std::max(total.peak, cost.peak), total.sent + cost.sent};
    }
  return total;
}

}  // namespace

Cost DataParallel::estimate(const ModelPlan& plan, int ranks) const {
  std::map<int64_t, Place> places;
  std::deque<std::vector<Segment>> units;
  std::vector<const Segment*> segments;
  std::vector<UnitBytes> bytes;
  Cost cost;
  for (const UnitSpec& unit : plan.units) {
    UnitBytes& total = bytes.emplace_back();
    for (const Segment& segment : units.emplace_back(
             segments_of(unit, 0, 0, ranks, settings_, context_.compute_dtype, places))) {
      segments.push_back(&segment);
      add(total, segment, settings_);
      add_traffic(cost, segment, settings_);
      if (settings_.offload_optimizer) cost.host_bytes += segment.part() * 4;
    }
    cost.bytes_held += total.held;
    cost.bytes_peak += total.held + total.gradients_held;
  }
  const Rehearsal rehearsal(plan, bytes, settings_);
  const MatrixCost update = cost_of(find_matrices(segments, plan.groups, ranks));
  cost.bytes_update = cost.bytes_peak + update.peak;
  cost.bytes_peak += rehearsal.peak();
  cost.bytes_moved_per_microbatch += rehearsal.gathered();
  cost.bytes_moved_per_step += rehearsal.gathered() + update.sent;
  cost.state_on_host = settings_.offload_optimizer;
  return cost;
}

}  // namespace dsv3::data_parallel
