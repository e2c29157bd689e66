// Which ranks hold the same values as this one, and the groups over which they communicate.
#pragma once

#include <dsv3/sdk/communicator.h>

#include "settings.h"

namespace dsv3::data_parallel {

/// The ranks that hold the same slice of a parameter (all ranks, unless the parameter is split by
/// expert parallelism) form rows of `shard_ranks` ranks. Each row holds one copy of the state.
/// Ranks with the same position in their rows hold the same shard of it.
struct Place {
  std::vector<int64_t> replicas;  ///< ranks of the run, ascending; row after row
  int64_t index = 0;              ///< of this rank in `replicas`
  int64_t shard_ranks = 1;

  int64_t size() const { return int64_t(replicas.size()); }
  int64_t shard() const { return index % shard_ranks; }
  int64_t row() const { return index / shard_ranks; }
  int64_t rows() const { return size() / shard_ranks; }
};

/// Returns the place of `rank` for parameters that are split over `slices` consecutive ranks (see
/// UnitParam::shards). Throws dsv3::Error (ExitCode::usage) if the ranks cannot be divided.
Place place_of(int64_t rank, int64_t ranks, int64_t slices, const Settings& settings);

/// Each purpose has its own group, so that operations for different purposes may be started in a
/// different order on different ranks.
struct Channels {
  std::shared_ptr<Communicator> gather, reduce;  ///< this rank's row
  std::shared_ptr<Communicator> replicate;       ///< the ranks with the same shard, by row
  std::shared_ptr<Communicator> update;          ///< all replicas
};

/// Collective over `world`.
Channels connect(Communicator& world, const Place& place);

}  // namespace dsv3::data_parallel
