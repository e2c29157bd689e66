// Settings that depend on the machine: device, precision, threads.
#pragma once

#include <string>

#include <dsv3/runtime/experiment.h>

namespace dsv3 {

/// Replaces `auto` in train.device, train.precision and train.threads with this machine's values,
/// so that a resumed run uses the same ones. Divides the cores among `local_ranks`, the number of
/// ranks on this machine, unless OMP_NUM_THREADS or SLURM_CPUS_PER_TASK is set.
void resolve_machine(Experiment& experiment, int64_t local_ranks = 1);

/// Replaces `auto` in the device, precision and threads of `experiment` with the values from `run`.
void resolve_machine_as(Experiment& experiment, const Experiment& run);

/// Changes train.device and train.precision. An empty argument leaves a setting unchanged. `label`
/// is the origin of the new values.
void set_machine(Experiment& experiment, const std::string& device, const std::string& precision,
                 const std::string& label);

}  // namespace dsv3
