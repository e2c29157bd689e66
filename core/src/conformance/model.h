// Checks of a component inside a whole, tiny model.
#pragma once

#include "conformance/suite.h"

namespace dsv3::conformance {

/// Losses and gradients of a model with the subject (attention, feed_forward or position) in it:
/// recomputation on = off in all bits, counts included; 4 micro-batches of 1 = 1 of 4; and three
/// steps under a strategy whose parameters exist only between enter and leave.
void check_in_model(const Subject& subject);

/// Throws Violation unless `declared` values a token are between 0.5 and 2 times `measured`.
void require_saved_values(double declared, double measured);

}  // namespace dsv3::conformance
