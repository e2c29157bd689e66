#include "train/memory.h"

#include <fstream>
#include <unistd.h>

#include <dsv3/runtime/ranks.h>

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
                                 const ModelFactory& factory, int64_t vocab, int64_t ranks)
    : experiment_(experiment),
      plugins_(plugins),
      factory_(factory),
      vocab_(vocab),
      ranks_(ranks),
      measurement_(experiment, vocab, factory),
      device_(experiment.train.device == "cuda" ? at::kCUDA : at::kCPU) {}

void MemoryEstimator::use(const ComponentSpec& spec) {
  const std::shared_ptr<Communicator> world = planned_communicator(ranks_);
  ModelFactory factory = factory_;
  factory.rank_group = rank_groups(world);
  Model model(experiment_, vocab_, factory, at::kMeta);
  OptimizerSet optimizers(experiment_, plugins_, model.store());
  const auto group_of = [&](const Parameter& p) { return optimizers.group_of(p); };
  const auto strategy = make<Strategy>(
      plugins_, spec, StrategyContext{world, at::kMeta, compute_dtype(experiment_.train)});
  const ModelPlan plan{model.units(group_of), model.uses(), optimizers.specs()};
  cost_ = call(*strategy, "estimate", &Strategy::estimate, plan, int(ranks_));
  model.adopt(*strategy, 0, group_of);
  call(*strategy, "ready", &Strategy::ready, optimizers.specs());
  optimizers.bind(*strategy);
  fixed_ = {.weights = cost_.bytes_held, .gradients = cost_.bytes_peak - cost_.bytes_held};
  (cost_.state_on_host ? fixed_.offloaded : fixed_.optimizer) = optimizers.state_bytes();
  fixed_.offloaded += cost_.host_bytes;
  if (device_ != at::kCPU) return;
  fixed_.process = resident_bytes() + kLibraryBytes;
  fixed_.optimizer += std::exchange(fixed_.offloaded, 0);
}

int64_t MemoryEstimator::bytes_moved(int64_t microbatches) const {
  return cost_.bytes_moved_per_step + (microbatches - 1) * cost_.bytes_moved_per_microbatch;
}

MemoryEstimate MemoryEstimator::estimate(int64_t micro_batch, bool recompute) const {
  MemoryEstimate estimate = fixed_;
  estimate.activations = measurement_.activation_bytes(micro_batch, device_, recompute);
  estimate.exchange =
      std::max<int64_t>(cost_.bytes_update - cost_.bytes_peak - estimate.activations, 0);
  return estimate;
}

}  // namespace dsv3
