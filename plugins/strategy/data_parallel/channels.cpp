#include "channels.h"

#include <algorithm>

#include <dsv3/sdk/error.h>

namespace dsv3::data_parallel {

Place place_of(int64_t rank, int64_t ranks, int64_t slices, const Settings& settings) {
  const int64_t row = settings.shard_ranks == 0 ? ranks : settings.shard_ranks;
  if (ranks % row != 0)
    throw Error("strategy '" + settings.name + "': 'shard' is " + std::to_string(row) +
                    ", which does not divide the run's " + std::to_string(ranks) +
                    " rank(s); set it to a divisor, or to 0 for all ranks",
                ExitCode::usage);
  if (ranks % slices != 0)
    throw Error("strategy '" + settings.name + "': a parameter is split over " +
                    std::to_string(slices) + " ranks, which does not divide the run's " +
                    std::to_string(ranks) + " rank(s); change the number of ranks",
                ExitCode::usage);
  Place place;
  for (int64_t replica = rank % slices; replica < ranks; replica += slices)
    place.replicas.push_back(replica);
  place.index = rank / slices;
  // A row holds row / slices copies of each slice.
  place.shard_ranks = row % slices == 0 ? row / slices : 1;
  return place;
}

Channels connect(Communicator& world, const Place& place) {
  const auto first = place.replicas.begin();
  const std::vector<int64_t> row(first + place.row() * place.shard_ranks,
                                 first + (place.row() + 1) * place.shard_ranks);
  std::vector<int64_t> column;
  for (int64_t i = place.shard(); i < place.size(); i += place.shard_ranks)
    column.push_back(place.replicas[size_t(i)]);
  Channels channels;
  channels.gather = world.subgroup(row);
  channels.reduce = world.subgroup(row);
  channels.replicate = world.subgroup(column);
  channels.update = world.subgroup(place.replicas);
  return channels;
}

}  // namespace dsv3::data_parallel
