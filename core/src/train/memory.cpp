#include "train/memory.h"

#include <fstream>
#include <unistd.h>

#include "call/call.h"
#include "machine/machine.h"

namespace dsv3 {
namespace {

/// Memory that libraries allocate when training starts: threads, buffers of matrix products, code
/// that is not loaded before its first use.
constexpr int64_t kLibraryBytes = int64_t{48} << 20;

/// Memory that this process uses now, in bytes.
int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace

MemoryEstimator::MemoryEstimator(const Experiment& experiment, Plugins& plugins,
                                 const ModelFactory& factory, const Model& meta,
                                 const OptimizerSet& optimizers)
    : measurement_(experiment, meta.vocab(), factory),
      device_(experiment.train.device == "cuda" ? at::kCUDA : at::kCPU) {
  const auto strategy = make<Strategy>(
      plugins, experiment.strategy,
      StrategyContext{local_communicator(), at::kMeta, compute_dtype(experiment.train)});
  const auto units =
      meta.units([&](const Parameter& parameter) { return optimizers.group_of(parameter); });
  const Cost cost = call(*strategy, "estimate", &Strategy::estimate, units, 1);
  fixed_.weights = cost.bytes_held;
  fixed_.gradients = cost.bytes_peak - cost.bytes_held;
  fixed_.optimizer = optimizers.state_bytes();
  if (device_ == at::kCPU) fixed_.process = resident_bytes() + kLibraryBytes;
}

MemoryEstimate MemoryEstimator::estimate(int64_t micro_batch, bool recompute) const {
  MemoryEstimate estimate = fixed_;
  estimate.activations = measurement_.activation_bytes(micro_batch, device_, recompute);
  return estimate;
}

}  // namespace dsv3
