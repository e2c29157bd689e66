// Chooses the strategy of an experiment with `strategy: auto`.
#pragma once

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/runtime/trainer.h>

namespace dsv3 {

/// Like choose_strategy() in trainer.h, with the choice of the first rank on all ranks. Collective.
void choose_strategy(Experiment& experiment, Plugins& plugins, const Ranks& ranks,
                     int64_t local_ranks);

}  // namespace dsv3
