// Compares Strategy::estimate() with the memory that strategies allocate and the bytes they send.
#include <mutex>

#include <ATen/Parallel.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/rank_threads.h>

#include "counting.h"
#include "support/built_plugins.h"

namespace dsv3::test {
namespace {

constexpr int64_t kVocab = 512, kLength = 8;

/// Large matrices and few tokens, so that activations need little memory.
Experiment large_experiment() {
  Experiment experiment;
  experiment.model.hidden = 128;
  experiment.model.layers = 6;
  experiment.train.sequence = kLength;
  const auto component = [](Kind kind, const std::string& name, const OptionValues& options) {
    ComponentSpec spec;
    spec.kind = kind;
    spec.plugin = name;
    spec.options = options;
    spec.origin.source = "test";
    return spec;
  };
  const int64_t heads = 4, inner = 512;
  experiment.attention = {{0, 5, component(Kind::attention, "mha", {{"heads", heads}})}};
  experiment.feed_forward = {{0, 5, component(Kind::feed_forward, "swiglu", {{"hidden", inner}})}};
  experiment.position = component(Kind::position, "rope", {});
  return experiment;
}

struct Subject {
  std::string name;
  OptionValues options;
  int64_t ranks;
  at::ScalarType dtype = at::kFloat;
};

struct Measured {
  Cost estimate;
  int64_t held = 0, peak = 0;        // of the rank with the highest peak
  int64_t sent = 0, sent_again = 0;  // in a step with one micro-batch, and by one more, by rank 0
};

/// Runs steps with one row on each rank, without an optimizer.
class Steps {
 public:
  Steps(const Subject& subject, const std::shared_ptr<Communicator>& world) {
    static std::mutex mutex;
    const std::scoped_lock lock(mutex);
    const Experiment experiment = large_experiment();
    model_ = std::make_unique<Model>(experiment, kVocab, factory_of(experiment, built_plugins()),
                                     at::kCPU);
    StrategyContext context;
    context.world = world;
    context.compute_dtype = subject.dtype;
    strategy_ = make_built<Strategy>(Kind::strategy, subject.name, subject.options, context);
    const auto one_group = [](const Parameter&) { return 0; };
    estimate = strategy_->estimate(model_->units(one_group), int(subject.ranks));
  }

  void adopt() {
    model_->adopt(*strategy_, 1, [](const Parameter&) { return 0; });
    strategy_->ready({{}});
  }

  void run(int64_t micro_batches) {
    Batch batch;
    batch.tokens = at::arange(kLength + 1).view({1, -1});
    batch.document_ids = at::zeros_like(batch.tokens);
    for (int64_t i = 0; i < micro_batches; ++i) {
      strategy_->begin_microbatch(i + 1 == micro_batches);
      strategy_->backward({model_->loss(batch, {double(kLength), {}, 1}).total});
    }
    strategy_->grad_norm();
    strategy_->update(0, [](std::span<UpdateTensor> tensors) {
      for (UpdateTensor& tensor : tensors) tensor.value.sub_(tensor.grad, 0.01);
    });
    strategy_->end_step();
  }

  Cost estimate;

 private:
  std::unique_ptr<Model> model_;
  std::shared_ptr<Strategy> strategy_;
};

Measured measure(const Subject& subject) {
  Measured measured;
  std::vector<Memory> memories(size_t(subject.ranks));
  CountingAllocator allocator;
  on_ranks(subject.ranks, [&](const std::shared_ptr<Communicator>& world) {
    at::set_num_threads(1);
    const auto sent = std::make_shared<int64_t>(0);
    const auto counting = std::make_shared<CountingCommunicator>(world, sent);
    Steps steps(subject, counting);
    Memory& memory = memories[size_t(world->rank())];
    CountingAllocator::count(&memory);
    steps.adopt();
    const int64_t held = memory.bytes;
    steps.run(1);
    const int64_t before = *sent;
    memory.peak = memory.bytes.load();
    steps.run(1);
    const int64_t once = *sent - before;
    steps.run(2);
    CountingAllocator::count(nullptr);
    if (world->rank() != 0) return;
    measured = {steps.estimate, held, memory.peak, once, *sent - before - 2 * once};
  });
  return measured;
}

bool is_near(int64_t actual, int64_t expected, double bound) {
  return std::abs(double(actual - expected)) <= bound * double(expected) + 4096;
}

TEST_CASE("the estimate equals the memory and the traffic of a rank") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const Measured single = measure({"single", {}, 1, dtype});
  // Activations, and gradients before they are added.
  const int64_t others = single.peak - single.estimate.bytes_peak;
  REQUIRE(others > 0);
  std::vector<Subject> subjects;
  for (const int64_t ranks : {2, 4}) {
    subjects.push_back({"ddp", {}, ranks, dtype});
    for (const int64_t stage : {1, 2, 3})
      subjects.push_back({"zero", {{"stage", stage}}, ranks, dtype});
  }
  const int64_t two = 2, three = 3, none = 0;
  subjects.push_back({"zero", {{"shard", two}}, 4, dtype});
  subjects.push_back({"zero", {{"stage", three}, {"prefetch", none}}, 4, dtype});
  for (const Subject& subject : subjects) {
    const Measured measured = measure(subject);
    CAPTURE(subject.name, subject.ranks, subject.options.size(), dtype, others);
    CAPTURE(measured.estimate.bytes_held, measured.held);
    CAPTURE(measured.estimate.bytes_peak, measured.peak);
    CAPTURE(measured.estimate.bytes_moved_per_step, measured.sent);
    CAPTURE(measured.estimate.bytes_moved_per_microbatch, measured.sent_again);
    CHECK(is_near(measured.held, measured.estimate.bytes_held, 0.02));
    CHECK(is_near(measured.peak, measured.estimate.bytes_peak + others, 0.1));
    CHECK(is_near(measured.sent, measured.estimate.bytes_moved_per_step, 0.05));
    CHECK(is_near(measured.sent_again, measured.estimate.bytes_moved_per_microbatch, 0.05));
  }
}

}  // namespace
}  // namespace dsv3::test
