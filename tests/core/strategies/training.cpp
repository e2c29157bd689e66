#include "training.h"

#include <mutex>

#include <ATen/Parallel.h>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/sdk/flat.h>

#include "support/built_plugins.h"

namespace dsv3::test {
namespace {

constexpr int64_t kVocab = 29, kLength = 4, kRows = 16;

std::mutex plugins_mutex;  // components are constructed by one rank at a time

ComponentSpec component(Kind kind, const std::string& name, const OptionValues& options = {}) {
  ComponentSpec spec;
  spec.kind = kind;
  spec.plugin = name;
  spec.options = options;
  spec.origin.source = "test";
  return spec;
}

OptimizerGroup group(const std::string& name, std::vector<std::string> roles,
                     const OptionValues& options) {
  OptimizerGroup result;
  result.name = name;
  result.roles = std::move(roles);
  result.component = component(Kind::optimizer, name, options);
  return result;
}

Experiment experiment_of(const Setup& setup) {
  Experiment experiment;
  experiment.model.hidden = 16;
  experiment.model.layers = 2;
  experiment.model.recompute = setup.recompute ? "full" : "none";
  experiment.model.tied_head = setup.tied;
  experiment.mtp.depth = 1;
  experiment.init.std = 0.3;
  experiment.train.sequence = kLength;
  const int64_t one = 1, two = 2, four = 4, eight = 8;
  experiment.attention = {
      {0, 1, component(Kind::attention, "mha", {{"heads", two}, {"head_dim", eight}})}};
  experiment.feed_forward = {
      {0, 0, component(Kind::feed_forward, "swiglu", {{"hidden", eight * 3}})},
      {1, 1,
       component(Kind::feed_forward, "moe",
                 {{"routed", four},
                  {"top_k", two},
                  {"shared", one},
                  {"hidden", eight},
                  {"balance_alpha", 1e-2}})}};
  experiment.position = component(Kind::position, "rope");
  if (setup.muon)
    experiment.optimizer = {group("muon", {"matrix"}, {{"ns_dtype", std::string("fp32")}}),
                            group("adamw", {}, {{"lr", 3e-3}})};
  else
    experiment.optimizer = {group("adamw", {}, {{"lr", 3e-3}})};
  return experiment;
}

/// All rows of a step. Documents end at different places, so ranks have different numbers of
/// targets.
Batch batch_of(int64_t step) {
  Batch batch;
  const at::Tensor ids = at::arange(kRows * (kLength + 1)).view({kRows, kLength + 1});
  batch.tokens = (ids * (7 + 4 * (step % 5)) + step * 3 + ids.div(11, "floor")).remainder(kVocab);
  const at::Tensor column = at::arange(kLength + 1).unsqueeze(0);
  const at::Tensor row = at::arange(kRows).unsqueeze(1);
  batch.document_ids = column.gt((row * 3 + step).remainder(6)).to(at::kLong);
  return batch;
}

Batch rows_of(const Batch& batch, int64_t first, int64_t count) {
  return {batch.tokens.narrow(0, first, count), batch.document_ids.narrow(0, first, count)};
}

/// An MoE layer that records how close its choices of experts are.
class WatchedMoe final : public FeedForward {
 public:
  WatchedMoe(const LayerContext& context, std::shared_ptr<FeedForward> layer, double* margin)
      : FeedForward(context), layer_(std::move(layer)), margin_(margin) {
    for (const Parameter& parameter : context.store->parameters())
      if (parameter.name == context.prefix + ".router.weight") router_ = parameter.tensor;
    for (const Buffer& buffer : context.store->buffers())
      if (buffer.name == context.prefix + ".router.bias") bias_ = buffer.tensor;
  }
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    if (router_.defined() && seq.training) {
      const at::NoGradGuard no_grad;
      const at::Tensor scores = at::sigmoid(at::matmul(x.to(at::kFloat), router_.t())) + bias_;
      const at::Tensor sorted = std::get<0>(scores.view({-1, 4}).sort(1, true));
      const at::Tensor margins = sorted.select(1, 1) - sorted.select(1, 2);
      *margin_ = std::min(*margin_, margins.min().item<double>());
    }
    return layer_->forward(x, seq);
  }
  at::Tensor step_counts() override { return layer_->step_counts(); }
  void on_step_end(const StepEnd& end) override { layer_->on_step_end(end); }

 private:
  std::shared_ptr<FeedForward> layer_;
  double* margin_;
  at::Tensor router_, bias_;
};

void add_piece(std::map<std::string, at::Tensor>& tensors, const Range& range,
               const at::Tensor& piece) {
  const auto found = tensors.try_emplace(range.name, at::zeros(range.global_shape)).first;
  found->second.view(-1).narrow(0, range.begin, range.end - range.begin).add_(piece.reshape(-1));
}

/// One rank's part of a run.
class Rank {
 public:
  Rank(const Setup& setup, const std::shared_ptr<Communicator>& world)
      : setup_(setup), world_(world), experiment_(experiment_of(setup)) {
    const std::scoped_lock lock(plugins_mutex);
    ModelFactory factory = factory_of(experiment_, built_plugins());
    factory.feed_forward = [this, make = factory.feed_forward](const LayerContext& context) {
      return std::make_shared<WatchedMoe>(context, make(context), &margin);
    };
    model_ = std::make_unique<Model>(experiment_, kVocab, factory, at::kCPU);
    optimizers_ = std::make_unique<OptimizerSet>(experiment_, built_plugins(), model_->store());
    StrategyContext context;
    context.world = world;
    context.compute_dtype = setup.dtype;
    strategy_ = make_built<Strategy>(Kind::strategy, setup.strategy, setup.options, context);
  }

  void start() {
    model_->adopt(*strategy_, setup_.seed,
                  [&](const Parameter& p) { return optimizers_->group_of(p); });
    strategy_->ready(optimizers_->specs());
    optimizers_->bind(*strategy_);
  }

  void step(int64_t step, Result& result) {
    const Batch batch = batch_of(step);
    const std::vector<int64_t> targets = count_targets(batch, 1);
    const LossScale scale{double(targets[0]), {double(targets[1])}, kRows};
    const int64_t count = kRows / (world_->size() * setup_.accumulate);
    at::Tensor loss = at::zeros({1}, at::kDouble);
    for (int64_t i = 0; i < setup_.accumulate; ++i) {
      strategy_->begin_microbatch(i + 1 == setup_.accumulate);
      const int64_t first = (i * world_->size() + world_->rank()) * count;
      const LossParts parts = model_->loss(rows_of(batch, first, count), scale);
      strategy_->backward({parts.total});
      loss += parts.total.item<double>();
    }
    world_->all_reduce_sum(loss);
    const double norm = strategy_->grad_norm().item<double>();
    if (norm > 1) strategy_->scale_grads(at::full({}, 1 / (norm + 1e-6), at::kDouble));
    optimizers_->step(*strategy_, {step, 1.0, double(step) / double(setup_.steps)});
    strategy_->end_step();
    for (const auto& layer : model_->feed_forward())
      if (at::Tensor counts = layer->step_counts(); counts.defined()) {
        at::Tensor sum = counts.clone();
        world_->all_reduce_sum(sum);
        layer->on_step_end({sum, double(step) / double(setup_.steps), step});
        counts.zero_();
      }
    const double validation =
        step % 10 == 0 ? model_->evaluate(rows_of(batch_of(1000), 0, 2)).first : 0;
    if (world_->rank() != 0) return;
    result.losses.push_back(loss.item<double>());
    result.norms.push_back(norm);
    result.validation.push_back(validation);
  }

  void collect(Result& result) const {
    for (const OwnedTensor& owned : strategy_->owned()) {
      if (!owned.range.primary) continue;
      add_piece(result.weights, owned.range, owned.value);
      add_piece(result.covered, owned.range, at::ones_like(owned.value));
    }
    for (size_t group = 0; group < experiment_.optimizer.size(); ++group)
      for (const Range& range : strategy_->update_ranges(int(group)))
        if (range.primary) add_piece(result.state, range, at::ones({range.end - range.begin}));
    result.margin = std::min(result.margin, margin);
  }

  double margin = 1;

 private:
  const Setup& setup_;
  std::shared_ptr<Communicator> world_;
  Experiment experiment_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<OptimizerSet> optimizers_;
  std::shared_ptr<Strategy> strategy_;
};

}  // namespace

std::string Setup::text() const {
  std::string text = strategy;
  for (const auto& [name, value] : options)
    if (const auto* number = std::get_if<int64_t>(&value))
      text += " " + name + "=" + std::to_string(*number);
    else
      text += " " + name;
  return text + " on " + std::to_string(ranks) + " rank(s), " + (muon ? "muon" : "adamw") +
         (tied ? ", tied" : "") + (recompute ? ", recompute" : "") + ", accumulate " +
         std::to_string(accumulate);
}

Result train(const Setup& setup) {
  Result result;
  std::mutex mutex;
  on_ranks(setup.ranks, [&](const std::shared_ptr<Communicator>& world) {
    at::set_num_threads(1);
    Rank rank(setup, world);
    rank.start();
    for (int64_t step = 1; step <= setup.steps; ++step) rank.step(step, result);
    const std::scoped_lock lock(mutex);
    rank.collect(result);
  });
  return result;
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(a[i] - b[i]) / std::max(std::abs(b[i]), 1e-30));
  return largest;
}

double difference(const std::map<std::string, at::Tensor>& a,
                  const std::map<std::string, at::Tensor>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double largest = 0;
  for (const auto& [name, tensor] : b) {
    const auto found = a.find(name);
    if (found == a.end()) return HUGE_VAL;
    const at::Tensor error = (found->second - tensor).abs().max() / tensor.abs().max();
    largest = std::max(largest, error.item<double>());
  }
  return largest;
}

bool is_identical(const Result& a, const Result& b) {
  for (const auto& [name, tensor] : a.weights)
    if (!b.weights.contains(name) || !at::equal(tensor, b.weights.at(name))) return false;
  return a.weights.size() == b.weights.size() && a.losses == b.losses && a.norms == b.norms &&
         a.validation == b.validation;
}

}  // namespace dsv3::test
