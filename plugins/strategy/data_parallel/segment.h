// Storage for the parameters of a unit that are sharded alike.
#pragma once

#include <dsv3/sdk/flat.h>

#include "channels.h"

namespace dsv3::data_parallel {

/// Memory that a segment needs on the device, in bytes.
struct SegmentBytes {
  int64_t master = 0;     ///< this rank's fp32 weights, unless they are part of `values`
  int64_t copy = 0;       ///< this rank's weights in the compute dtype, if needed to gather them
  int64_t values = 0;     ///< all weights in the compute dtype
  int64_t gradients = 0;  ///< all gradients in fp32
  int64_t reduced = 0;    ///< this rank's gradients in fp32, unless they are part of `gradients`
};

/// Parameters of one unit that have the same ranks and compute dtype, in flat buffers of equal
/// parts, one for each rank of a row.
class Segment {
 public:
  Segment(std::vector<UnitParam> params, int64_t unit, const Place& place, const Settings& settings,
          at::ScalarType compute_dtype);

  /// Moves the parameters' values into this segment's buffers on `device`.
  void adopt(at::Device device);
  void connect(const Channels* channels) { channels_ = channels; }

  // Values. Outside open_values() and release_values(), they are freed if frees_values().
  bool frees_values() const { return settings_->shard_parameters && sharded(); }
  void start_values();    ///< Starts gathering, unless the values are present.
  void wait_values();     ///< Returns when the components may read them.
  void release_values();  ///< Frees them if frees_values().
  void refresh();         ///< Call after the masters changed; starts gathering if not freed.

  // Gradients. Outside begin_gradients() and release_gradients(), they are freed if
  // frees_gradients().
  bool frees_gradients() const { return settings_->shard_gradients && sharded(); }
  void allocate_gradients();  ///< Call once, before the first backward pass.
  void begin_gradients();     ///< Allocates zeros if they are freed.
  void release_gradients();
  void clear_gradients();  ///< at the end of a step

  const at::Tensor& master() const { return master_; }        ///< fp32 [part()]
  const at::Tensor& gradients() const { return gradients_; }  ///< fp32 [all ranks of the row]
  const at::Tensor& reduced() const { return reduced_; }      ///< fp32 [part()]
  /// The slice of reduced() for whose norm this rank is responsible.
  at::Tensor counted() const;

  const std::vector<UnitParam>& params() const { return params_; }
  const Place& place() const { return *place_; }
  const Channels& channels() const { return *channels_; }
  bool sharded() const { return place_->shard_ranks > 1; }
  int64_t part() const { return part_; }
  int64_t offset(size_t param) const { return offsets_[param]; }  ///< in the buffer of all ranks
  /// The elements of parameter `param` in this rank's part; empty ranges have begin == end.
  Range own_range(size_t param) const;
  /// The elements of `range` of parameter `param` in a buffer [part()] of this rank, as [n].
  at::Tensor own_view(const at::Tensor& buffer, size_t param, const Range& range) const;
  SegmentBytes bytes() const;

 private:
  /// Whether parameters share memory with the masters: as a whole, or as this rank's part.
  bool values_contain_masters() const;
  at::Tensor own_part(const at::Tensor& buffer) const;
  void fill_own_part();
  void point_params();

  std::vector<UnitParam> params_;
  int64_t unit_;
  const Place* place_;
  const Settings* settings_;
  const Channels* channels_ = nullptr;
  at::ScalarType dtype_;
  FlatLayout layout_;
  std::vector<int64_t> offsets_;
  int64_t part_ = 0;
  at::Tensor master_, copy_, values_, gradients_, reduced_;
  std::unique_ptr<Work> gather_;
  bool present_ = true;
};

}  // namespace dsv3::data_parallel
