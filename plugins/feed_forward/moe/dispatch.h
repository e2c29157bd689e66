// Which rows the ranks of an expert-parallel group exchange.
#pragma once

#include <vector>

#include <dsv3/sdk/communicator.h>

namespace moe {

struct Dispatch {
  std::vector<int64_t> sent, received;  ///< number of rows to and from each rank
  at::Tensor experts;  ///< int64 [received rows, 1]: expert of each row, counted from this rank's
                       ///< first one
};

/// Exchanges how many rows ranks send to each expert. `counts` int64 [E] contains this rank's rows
/// for each expert of the group; every rank has E / size() consecutive experts. The host waits for
/// the counts. Collective.
Dispatch dispatch_of(const at::Tensor& counts, dsv3::Communicator& group);

}  // namespace moe
