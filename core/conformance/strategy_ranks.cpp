// Conformance checks for strategies on several ranks, which are threads of this process.
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include <dsv3/runtime/rank_threads.h>

#include "conformance/layers.h"

namespace dsv3::conformance {
namespace {

using World = std::shared_ptr<Communicator>;

/// Constructs the strategy on one rank. Returns null if it supports one rank only, and reports that
/// as a user error. It must then do so on every rank.
std::shared_ptr<Strategy> strategy(const Subject& subject, const World& world) {
  std::shared_ptr<Strategy> checked;
  try {
    checked = construct<Strategy>(subject, StrategyContext{world, at::kCPU, at::kFloat});
  } catch (const Error& error) {
    if (error.code() != ExitCode::usage) throw;
  }
  at::Tensor supported = at::full({1}, int64_t(checked != nullptr), at::kLong);
  world->all_reduce_sum(supported);
  const int64_t count = supported.item<int64_t>();
  require(count == 0 || count == world->size(), "the strategy rejects ", world->size(),
          " ranks on some of them only");
  return checked;
}

/// A tensor that several ranks fill with their pieces.
class Pieces {
 public:
  void add(const Range& range, const at::Tensor& value) {
    const int64_t size = range.end - range.begin;
    require(value.numel() == size, "a value of ", range.name, " has ", value.numel(),
            " elements, and its range ", size);
    at::Tensor& values =
        values_.try_emplace(range.name, at::zeros(range.global_shape)).first->second;
    at::Tensor& counts =
        counts_.try_emplace(range.name, at::zeros(range.global_shape)).first->second;
    values.view(-1).narrow(0, range.begin, size).add_(value.detach().reshape(-1));
    counts.view(-1).narrow(0, range.begin, size).add_(1);
  }
  void require_complete(const std::map<std::string, at::Tensor>& expected,
                        const std::string& what) const {
    for (const auto& [name, tensor] : expected) {
      require(counts_.contains(name), what, ": no rank has a piece of ", name);
      require(at::equal(counts_.at(name), at::ones_like(tensor)), what,
              ": the primary pieces do not cover each element of ", name, " exactly once");
    }
    require(counts_.size() == expected.size(), what, ": pieces of parameters never adopted");
  }
  const std::map<std::string, at::Tensor>& values() const { return values_; }

 private:
  std::map<std::string, at::Tensor> values_, counts_;
};

void require_replicas(const std::vector<OwnedTensor>& owned,
                      const std::map<std::string, at::Tensor>& expected, double bound) {
  for (const OwnedTensor& tensor : owned) {
    const Range& range = tensor.range;
    const at::Tensor whole = expected.at(range.name).reshape(-1);
    require_close(tensor.value.detach().reshape(-1),
                  whole.narrow(0, range.begin, range.end - range.begin), bound,
                  range.name + " on a rank that stores a copy");
  }
}

struct RankModel {
  RankModel(const Subject& subject, const World& rank_world, const Experiment& experiment,
            std::vector<GroupSpec> groups = {{}})
      : world(rank_world),
        checked(strategy(subject, world)),
        model(experiment, kVocab, tiny_factory(), at::kCPU) {
    if (!checked) return;
    const bool split = groups.size() > 1;
    model.adopt(*checked, kSeed, [split](const Parameter& parameter) {
      return int(split && parameter.spec.role == Role::matrix);
    });
    checked->ready(groups);
  }

  void step(Trained& trained, int64_t number, int64_t micro) {
    at::Tensor loss =
        at::full({1}, accumulate(model, number, micro, checked.get(), world->rank(), world->size()),
                 at::kDouble);
    world->all_reduce_sum(loss);
    trained.losses.push_back(loss.item<double>());
    trained.norms.push_back(checked->grad_norm().item<double>());
    update([](UpdateTensor& tensor) { tensor.value.sub_(tensor.grad, kLearningRate); });
    checked->end_step();
  }
  void update(const std::function<void(UpdateTensor&)>& change, int group = 0) {
    checked->update(group, [&](std::span<UpdateTensor> tensors) {
      const at::NoGradGuard no_grad;
      for (UpdateTensor& tensor : tensors) change(tensor);
    });
  }

  World world;
  std::shared_ptr<Strategy> checked;
  Model model;
};

constexpr const char* kOneRank = "the strategy supports one rank only";

/// Trains on `ranks` ranks and compares losses, norms, and all copies of the weights. Returns
/// whether the strategy supports so many.
bool check_training(const Subject& subject, int64_t ranks, const Experiment& experiment) {
  // In further steps, rounding errors would grow beyond the bound.
  constexpr int64_t kSteps = 2;
  const Trained expected = train_plainly(experiment, tiny_factory(), kSteps, 1);
  const std::string what = c10::str("on ", ranks, " ranks (recompute: ", experiment.model.recompute,
                                    ", ", experiment.model.tied_head ? "tied" : "untied", " head)");
  std::mutex mutex;
  Pieces pieces;
  on_ranks(ranks, [&](const World& world) {
    RankModel rank(subject, world, experiment);
    if (!rank.checked) return;
    Trained trained;
    for (int64_t step = 0; step < kSteps; ++step) rank.step(trained, step, 1);
    const std::vector<OwnedTensor> owned = rank.checked->owned();
    const std::scoped_lock lock(mutex);
    trained.parameters = expected.parameters;  // compared below
    require_same(trained, expected, 1e-5, what + ", rank " + std::to_string(world->rank()));
    require_replicas(owned, expected.parameters, 1e-5);
    for (const OwnedTensor& tensor : owned)
      if (tensor.range.primary) pieces.add(tensor.range, tensor.value);
  });
  if (pieces.values().empty()) return false;
  pieces.require_complete(expected.parameters, what);
  return true;
}

}  // namespace

void strategy_rank_checks(const AddCheck& check) {
  check("ranks", "trains on 2 and 4 ranks as on one", [](const Subject& subject) {
    bool is_supported = false;
    for (const int64_t ranks : {2, 4})
      for (const bool tied : {true, false})
        is_supported |=
            check_training(subject, ranks, tiny_experiment(ranks == 2 ? "full" : "none", tied));
    if (!is_supported) throw NotApplicable(kOneRank);
  });
  // Matrices are doubled by the rank that updates them. Every rank must then compute with them.
  check("matrices", "updates each matrix once, and sends it to all ranks",
        [](const Subject& subject) {
          const Experiment experiment = tiny_experiment();
          Model plain(experiment, kVocab, tiny_factory(), at::kCPU);
          plain.initialise(kSeed);
          std::map<std::string, at::Tensor> expected;
          for (const Parameter& parameter : plain.store().parameters()) {
            const at::NoGradGuard no_grad;
            if (parameter.spec.role == Role::matrix) parameter.tensor.mul_(2);
            expected[parameter.name] = parameter.tensor.detach().clone();
          }
          const double loss = plain.evaluate(tiny_batch(0)).first;
          std::mutex mutex;
          Pieces pieces, updated;
          on_ranks(2, [&](const World& world) {
            RankModel rank(subject, world, experiment, {{false}, {true}});
            if (!rank.checked) return;
            rank.update(
                [](UpdateTensor& tensor) {
                  const Range& range = tensor.range;
                  require(tensor.value.dim() == 2 &&
                              tensor.value.numel() == range.end - range.begin &&
                              tensor.value.size(1) == range.box_shape.back(),
                          "update() does not pass ", range.name, " as whole matrices");
                  tensor.value.mul_(2);
                },
                1);
            rank.checked->loaded();
            const double actual = rank.model.evaluate(tiny_batch(0)).first;
            const std::scoped_lock lock(mutex);
            require(std::abs(actual - loss) <= 1e-6 * std::abs(loss), "the loss on rank ",
                    world->rank(), " after an update is ", actual, ", expected ", loss);
            for (const OwnedTensor& tensor : rank.checked->owned())
              if (tensor.range.primary) pieces.add(tensor.range, tensor.value);
            for (const int group : {0, 1})
              for (const Range& range : rank.checked->update_ranges(group))
                if (range.primary) updated.add(range, at::ones({range.end - range.begin}));
          });
          if (pieces.values().empty()) throw NotApplicable(kOneRank);
          pieces.require_complete(expected, "owned()");
          updated.require_complete(expected, "update_ranges()");
          for (const auto& [name, tensor] : expected)
            require_close(pieces.values().at(name), tensor, 1e-6, "the updated value of " + name);
        });
  check("bad_rank", "reports a gradient that is not finite on one rank to all",
        [](const Subject& subject) {
          std::atomic<bool> is_supported = false;
          on_ranks(2, [&](const World& world) {
            RankModel rank(subject, world, tiny_experiment());
            if (!rank.checked) return;
            is_supported = true;
            rank.checked->begin_microbatch(true);
            const Batch batch = tiny_batch(0);
            const LossScale scale{1, {1}, kRows};
            const at::Tensor loss = rank.model.loss(batch, scale).total;
            const double factor = world->rank() == 1 ? std::numeric_limits<double>::infinity() : 1;
            rank.checked->backward({loss * factor});
            require(!std::isfinite(rank.checked->grad_norm().item<double>()),
                    "grad_norm() is finite on rank ", world->rank(),
                    ", although a gradient of rank 1 is not");
            rank.checked->scale_grads(at::zeros({}, at::kDouble));
            rank.checked->end_step();
            Trained trained;
            rank.step(trained, 0, 1);
            require(std::isfinite(trained.norms[0]),
                    "the gradient norm of the step after one that "
                    "was skipped is not finite");
          });
          if (!is_supported) throw NotApplicable(kOneRank);
        });
}

}  // namespace dsv3::conformance
