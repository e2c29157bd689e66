// Records what the ranks do in a few steps, for Perfetto.
#pragma once

#include "train/training.h"

namespace dsv3 {

/// Records three steps with LibTorch's profiler, after two steps without it, and writes
/// profile/trace.json to the run folder: operators, collective operations and kernels, with tracks
/// of their own for each rank. Open it at ui.perfetto.dev.
class Profile {
 public:
  explicit Profile(Training& run);
  /// Call before each step. Collective.
  void step_begins();
  /// Call after each step, and set `last` if no other step follows. Collective.
  void step_ended(bool last);

 private:
  void write() const;

  Training& run_;
  int64_t first_;  // step to record
  bool recording_ = false;
};

}  // namespace dsv3
