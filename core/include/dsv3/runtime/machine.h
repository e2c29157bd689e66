// Settings that the machine decides: device, precision, threads.
#pragma once

#include <string>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// Replaces `auto` in train.device, train.precision and train.threads by the values of this
/// machine, so that a resumed run keeps them.
void resolve_machine(Experiment& experiment);

/// Replaces `auto` in the device, precision and threads of `experiment` by the values of `run`.
void resolve_machine_as(Experiment& experiment, const Experiment& run);

/// Changes train.device and train.precision; an empty argument leaves a setting as it is. `label`
/// is the origin of the new values.
void set_machine(Experiment& experiment, const std::string& device, const std::string& precision,
                 const std::string& label);

}  // namespace dsv3
