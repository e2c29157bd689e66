// Compares Strategy::estimate() with the memory that strategies allocate and the bytes they send.
#include <limits>
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
Experiment large_experiment(int64_t mtp_depth, bool tied_head) {
  Experiment experiment;
  experiment.mtp.depth = mtp_depth;
  experiment.model.tied_head = tied_head;
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
  int64_t mtp_depth = 0;
  bool tied_head = false, whole_matrices = false;
};

/// Of rank 0.
struct Measured {
  Cost estimate;
  int64_t held = 0;
  /// The smallest of several steps: after wait(), one of Gloo's threads may hold an operation's
  /// tensors for a moment longer.
  int64_t peak = std::numeric_limits<int64_t>::max();
  int64_t sent = 0, sent_again = 0;  ///< in a step with one micro-batch, and by one more
};

/// Runs steps with one row on each rank, without an optimizer.
class Steps {
 public:
  Steps(const Subject& subject, const std::shared_ptr<Communicator>& world) {
    static std::mutex mutex;
    const std::scoped_lock lock(mutex);
    const Experiment experiment = large_experiment(subject.mtp_depth, subject.tied_head);
    model_ = std::make_unique<Model>(experiment, kVocab, factory_of(experiment, built_plugins()),
                                     at::kCPU);
    StrategyContext context;
    context.world = world;
    context.compute_dtype = subject.dtype;
    strategy_ = make_built<Strategy>(Kind::strategy, subject.name, subject.options, context);
    const auto one_group = [](const Parameter&) { return 0; };
    groups_ = {{subject.whole_matrices}};
    estimate = strategy_->estimate({model_->units(one_group), model_->uses(), groups_},
                                   int(subject.ranks));
  }

  void adopt() {
    model_->adopt(*strategy_, 1, [](const Parameter&) { return 0; });
    strategy_->ready(groups_);
  }

  void run(int64_t micro_batches) {
    Batch batch;
    batch.tokens = at::arange(kLength + 1).view({1, -1});
    batch.document_ids = at::zeros_like(batch.tokens);
    for (int64_t i = 0; i < micro_batches; ++i) {
      strategy_->begin_microbatch(i + 1 == micro_batches);
      const std::vector<double> mtp_targets(size_t(model_->mtp_depth()), kLength);
      strategy_->backward({model_->loss(batch, {double(kLength), mtp_targets, 1}).total});
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
  std::vector<GroupSpec> groups_;
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
    Measured result{.estimate = steps.estimate, .held = memory.bytes};
    steps.run(1);
    for (int step = 0; step < 3; ++step) {
      const int64_t before = *sent;
      memory.peak = memory.bytes.load();
      steps.run(1);
      result.peak = std::min(result.peak, memory.peak.load());
      result.sent = *sent - before;
    }
    const int64_t before = *sent;
    steps.run(2);
    result.sent_again = *sent - before - result.sent;
    CountingAllocator::count(nullptr);
    if (world->rank() == 0) measured = result;
  });
  return measured;
}

bool is_near(int64_t actual, int64_t expected, double bound) {
  return std::abs(double(actual - expected)) <= bound * double(expected) + 4096;
}

/// Memory of a single rank besides what its strategy needs: activations, and gradients before they
/// are added.
int64_t other_bytes(Subject subject) {
  subject.name = "single";
  subject.options = {};
  subject.ranks = 1;
  const Measured single = measure(subject);
  const int64_t others = single.peak - single.estimate.bytes_peak;
  REQUIRE(others > 0);
  return others;
}

void check_estimate(const Subject& subject, int64_t others) {
  const Measured measured = measure(subject);
  CAPTURE(subject.name, subject.ranks, subject.options.size(), subject.dtype, others);
  CAPTURE(subject.mtp_depth, subject.tied_head, subject.whole_matrices);
  CAPTURE(measured.estimate.bytes_held, measured.held);
  const int64_t expected_peak =
      std::max(measured.estimate.bytes_peak + others, measured.estimate.bytes_update);
  CAPTURE(expected_peak, measured.peak);
  CAPTURE(measured.estimate.bytes_moved_per_step, measured.sent);
  CAPTURE(measured.estimate.bytes_moved_per_microbatch, measured.sent_again);
  CHECK(is_near(measured.held, measured.estimate.bytes_held, 0.02));
  CHECK(is_near(measured.peak, expected_peak, 0.1));
  CHECK(is_near(measured.sent, measured.estimate.bytes_moved_per_step, 0.05));
  CHECK(is_near(measured.sent_again, measured.estimate.bytes_moved_per_microbatch, 0.05));
}

TEST_CASE("the estimate equals the memory and the traffic of a rank") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const int64_t others = other_bytes({.dtype = dtype});
  std::vector<Subject> subjects;
  for (const int64_t ranks : {2, 4}) {
    subjects.push_back({"ddp", {}, ranks, dtype});
    for (const int64_t stage : {1, 2, 3})
      subjects.push_back({"zero", {{"stage", stage}}, ranks, dtype});
  }
  const int64_t two = 2, three = 3, none = 0;
  subjects.push_back({"zero", {{"shard", two}}, 4, dtype});
  subjects.push_back({"zero", {{"stage", three}, {"prefetch", none}}, 4, dtype});
  for (const Subject& subject : subjects) check_estimate(subject, others);
}

TEST_CASE("the estimate counts every use of a unit") {
  Subject subject{.name = "zero", .ranks = 2};
  subject.mtp_depth = GENERATE(1, 2);
  subject.tied_head = GENERATE(false, true);
  const int64_t others = other_bytes(subject);
  for (const int64_t stage : {2, 3})
    for (const bool reshard : {true, false}) {
      subject.options = {{"stage", stage}, {"reshard_after_forward", reshard}};
      check_estimate(subject, others);
    }
}

TEST_CASE("the estimate counts the exchange of whole matrices") {
  Subject subject{.name = "ddp", .ranks = 4, .whole_matrices = true};
  const int64_t others = other_bytes(subject), two = 2, three = 3;
  check_estimate(subject, others);
  subject.name = "zero";
  for (const OptionValues& options :
       {OptionValues{}, {{"stage", three}}, {{"shard", two}}, {{"stage", three}, {"shard", two}}}) {
    subject.options = options;
    check_estimate(subject, others);
  }
}

}  // namespace
}  // namespace dsv3::test
