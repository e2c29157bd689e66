// Chooses the strategy of an experiment with `strategy: auto`.
#pragma once

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/ranks.h>

namespace dsv3 {

/// Replaces `strategy: auto` by the first strategy whose memory estimate fits, from replicating
/// everything to sharding everything, and logs the estimates. Uses the last one if none fits.
/// `ranks` is the number of ranks, and `local_ranks` that of ranks that share this machine.
void choose_strategy(Experiment& experiment, Plugins& plugins, int64_t ranks, int64_t local_ranks);

/// Same, with the choice of the first rank on all ranks. Collective.
void choose_strategy(Experiment& experiment, Plugins& plugins, const Ranks& ranks,
                     int64_t local_ranks);

}  // namespace dsv3
