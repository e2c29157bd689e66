// Finds a rank whose parameters differ from their copies on other ranks.
#pragma once

#include "train/training.h"

namespace dsv3 {

/// Interval of compare_replicas() in steps.
inline constexpr int64_t kCompareReplicas = 100;

/// Compares checksums of the parameters that several ranks hold. Throws dsv3::Error on all ranks if
/// they differ; it names the rank with other values than most. Collective.
void compare_replicas(Training& run);

}  // namespace dsv3
