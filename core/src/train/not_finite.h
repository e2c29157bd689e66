// Where the numbers of a step stopped being finite.
#pragma once

#include <span>
#include <string>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>

namespace dsv3 {

/// A sentence that names the first module, in the order of computation, whose output or gradient is
/// not finite, and the first such parameter, coming from the loss; empty = all is finite when it is
/// computed again. Call between the step's last backward and Strategy::end_step(), on all ranks.
/// Runs the forwards of the step's micro-batches again, counting nothing; with `backward` their
/// backwards too when the forwards are finite, after which the gradients are good for nothing.
std::string find_not_finite(Model& model, Strategy& strategy, const OptimizerSet& optimizers,
                            std::span<const Batch> batches, const LossScale& scale, bool backward);

}  // namespace dsv3
