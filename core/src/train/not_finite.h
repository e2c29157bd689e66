// Finds where the values of a step became NaN or infinite.
#pragma once

#include <span>
#include <string>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>

namespace dsv3 {

/// Returns a sentence that names the first module, in order of computation, with a non-finite
/// output or gradient, and the first such parameter, going back from the loss; empty when
/// everything is finite in a second run. Call it between the step's last backward and
/// Strategy::end_step(), on all ranks. It repeats the forwards of the step's micro-batches without
/// counting tokens, and with `backward` also their backwards if the forwards are finite, which
/// makes the gradients useless.
std::string find_not_finite(Model& model, Strategy& strategy, const OptimizerSet& optimizers,
                            std::span<const Batch> batches, const LossScale& scale, bool backward);

}  // namespace dsv3
