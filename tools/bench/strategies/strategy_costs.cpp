// Trains as one rank and prints, as JSON, how much memory its tensors used and how many bytes it
// sent in a step, with the estimates of both.
#include <iostream>

#include <ATen/Parallel.h>

#include <dsv3/runtime/ranks.h>
#include <dsv3/support/json.h>

#include "../../../tests/core/strategies/counting.h"
#include "machine/machine.h"
#include "train/memory.h"

namespace {

using namespace dsv3;
using test::CountingAllocator;
using test::CountingCommunicator;

/// A rank's model with its strategy and optimizers.
class Rank {
 public:
  Rank(const Experiment& experiment, Plugins& plugins, const std::shared_ptr<Communicator>& world)
      : experiment_(experiment) {
    ModelFactory factory = factory_of(experiment, plugins);
    factory.rank_group = rank_groups(world);
    model_ = std::make_unique<Model>(experiment, *experiment.model.vocab, factory, at::kCPU);
    optimizers_ = std::make_unique<OptimizerSet>(experiment, plugins, model_->store());
    strategy_ = make<Strategy>(plugins, experiment.strategy,
                               StrategyContext{world, at::kCPU, compute_dtype(experiment.train)});
    model_->adopt(*strategy_, 1, [this](const Parameter& p) { return optimizers_->group_of(p); });
    strategy_->ready(optimizers_->specs());
    optimizers_->bind(*strategy_);
  }

  /// One step with one row, which has several documents, as the estimate assumes.
  void step() {
    const int64_t columns = experiment_.train.sequence + 1;
    const at::Tensor positions = at::arange(columns, at::kLong).view({1, -1});
    Batch batch;
    batch.tokens = positions.mul(7919).remainder(*experiment_.model.vocab);
    batch.document_ids = positions.div(16, "floor");
    const std::vector<int64_t> targets = count_targets(batch, experiment_.mtp.depth);
    strategy_->begin_microbatch(true);
    const LossScale scale{double(targets[0]), {targets.begin() + 1, targets.end()}, 1};
    strategy_->backward({model_->loss(batch, scale).total});
    strategy_->grad_norm();
    optimizers_->step(*strategy_, {.update = ++updates_, .lr_factor = 1});
    strategy_->end_step();
  }

 private:
  const Experiment& experiment_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<OptimizerSet> optimizers_;
  std::shared_ptr<Strategy> strategy_;
  int64_t updates_ = 0;
};

Json measure(const std::string& file) {
  Plugins plugins(plugin_search_levels({}, {}));
  ExperimentRequest request;
  request.file = file;
  const Experiment experiment = load_experiment(request, plugins);
  at::set_num_threads(1);
  const Ranks ranks = connect(rank_context(environment()), 60);

  const ModelFactory factory = factory_of(experiment, plugins);
  MemoryEstimator estimator(experiment, plugins, factory, *experiment.model.vocab, ranks.size());
  estimator.use(experiment.strategy);
  MemoryEstimate estimate = estimator.estimate(1, experiment.model.recompute == "full");
  estimate.process = 0;

  const auto sent = std::make_shared<int64_t>(0);
  test::Memory memory;
  CountingAllocator allocator;
  CountingAllocator::count(&memory);
  Rank rank(experiment, plugins, std::make_shared<CountingCommunicator>(ranks.world, sent));
  rank.step();  // allocates gradients
  memory.peak = memory.bytes.load();
  *sent = 0;
  rank.step();
  CountingAllocator::count(nullptr);
  ranks.world->barrier();  // a rank that leaves earlier would break the others' connections
  return {{"rank", ranks.world->rank()},
          {"peak", memory.peak.load()},
          {"peak_estimate", estimate.total()},
          {"sent", *sent},
          {"sent_estimate", estimator.bytes_moved(1)}};
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 2) throw Error("usage: strategy_costs FILE", ExitCode::usage);
    std::cout << measure(argv[1]) << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
