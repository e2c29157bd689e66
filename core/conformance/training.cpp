#include "conformance/training.h"

#include <cmath>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "conformance/flat_strategy.h"
#include "conformance/layers.h"
#include "conformance/reference_layers.h"

namespace dsv3::conformance {
namespace {

constexpr double kLearningRate = 0.05;
constexpr uint64_t kSeed = 3;

/// A model's factory function that constructs the subject.
template <class Base, class Context>
std::function<std::shared_ptr<Base>(const Context&)> subject_factory(const Subject& subject) {
  return [&subject](const Context& context) { return construct<Base>(subject, context); };
}

/// The same for a reference layer.
template <class Layer>
auto reference_factory() {
  return [](const LayerContext& context) { return std::make_shared<Layer>(context); };
}

LossScale scale_of(const Batch& batch) {
  const std::vector<int64_t> counts = count_targets(batch, kMtpDepth);
  LossScale scale;
  scale.main_targets = double(counts[0]);
  scale.mtp_targets.assign(counts.begin() + 1, counts.end());
  scale.sequences = batch.tokens.size(0);
  return scale;
}

/// The loss of `batch` in micro-batches of `micro` rows. Before each, `begin` is told whether it is
/// the last; after its forward, `backward` gets its loss.
double accumulate(Model& model, const Batch& batch, int64_t micro,
                  const std::function<void(bool)>& begin,
                  const std::function<void(const at::Tensor&)>& backward) {
  const LossScale scale = scale_of(batch);
  double loss = 0;
  for (int64_t row = 0; row < kRows; row += micro) {
    begin(row + micro >= kRows);
    const LossParts parts = model.loss(
        {batch.tokens.narrow(0, row, micro), batch.document_ids.narrow(0, row, micro)}, scale);
    backward(parts.total);
    loss += parts.total.item<double>();
  }
  return loss;
}

void require_near(const std::vector<double>& actual, const std::vector<double>& expected,
                  double bound, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    require(std::abs(actual[i] - expected[i]) <= bound * std::abs(expected[i]), what, " of step ",
            i + 1, " is ", actual[i], ", expected ", expected[i]);
}

}  // namespace

Experiment tiny_experiment() {
  Experiment experiment;
  experiment.model.hidden = kHidden;
  experiment.model.layers = 2;
  experiment.model.tied_head = true;
  experiment.train.sequence = kSequence;
  experiment.init.std = 0.2;  // large enough for every part of the model to matter
  experiment.mtp.depth = kMtpDepth;
  return experiment;
}

ModelFactory tiny_factory(const Subject* subject) {
  ModelFactory factory{reference_factory<ReferenceAttention>(),
                       reference_factory<ReferenceFeedForward>(),
                       [](const PositionContext& context) {
                         return layer_context(at::kFloat).make_position(context.rotary_dim);
                       }};
  if (!subject) return factory;
  const Kind kind = subject->component.kind;
  if (kind == Kind::attention)
    factory.attention = subject_factory<Attention, LayerContext>(*subject);
  if (kind == Kind::feed_forward)
    factory.feed_forward = subject_factory<FeedForward, LayerContext>(*subject);
  if (kind == Kind::position) {
    factory.position = subject_factory<Position, PositionContext>(*subject);
    factory.attention = reference_factory<RotaryAttention>();
  }
  return factory;
}

Batch tiny_batch(int64_t step) {
  Batch batch;
  batch.tokens = at::arange(kRows * (kSequence + 1), at::kLong)
                     .view({kRows, kSequence + 1})
                     .mul(7 + 2 * step)
                     .add(3 * step)
                     .remainder(kVocab);
  batch.document_ids = at::zeros({kRows, kSequence + 1}, at::kLong);
  batch.document_ids.narrow(0, 1, 1).narrow(1, 5, kSequence - 4).fill_(1);
  batch.document_ids.narrow(0, 2, 1).narrow(1, 3, 4).fill_(2);
  batch.document_ids.narrow(0, 3, 1).narrow(1, 9, kSequence - 8).fill_(-1);
  return batch;
}

Trained train_plainly(const Experiment& experiment, const ModelFactory& factory, int64_t steps,
                      int64_t micro, at::ScalarType dtype) {
  Model model(experiment, kVocab, factory, at::kCPU, dtype);
  model.initialise(kSeed);
  Trained trained;
  for (int64_t step = 0; step < steps; ++step) {
    for (const Parameter& parameter : model.store().parameters())
      parameter.tensor.mutable_grad() = at::Tensor();
    trained.losses.push_back(accumulate(
        model, tiny_batch(step), micro, [](bool) {},
        [](const at::Tensor& loss) { torch::autograd::backward({loss}, {}); }));
    double squares = 0;
    for (const Parameter& parameter : model.store().parameters()) {
      const at::Tensor& grad = parameter.tensor.grad();
      const at::Tensor gradient = grad.defined() ? grad.clone() : at::zeros_like(parameter.tensor);
      squares += gradient.to(at::kDouble).square().sum().item<double>();
      parameter.tensor.detach().sub_(gradient, kLearningRate);
      trained.gradients[parameter.name] = gradient;
      trained.parameters[parameter.name] = parameter.tensor.detach().clone();
    }
    trained.norms.push_back(std::sqrt(squares));
  }
  for (const auto& layer : model.feed_forward())
    if (const at::Tensor counts = layer->step_counts(); counts.defined())
      trained.counts.push_back(counts.clone());
  return trained;
}

Trained train_under(const std::shared_ptr<Strategy>& strategy, const Experiment& experiment,
                    const ModelFactory& factory, int64_t steps, int64_t micro) {
  Model model(experiment, kVocab, factory, at::kCPU);
  model.adopt(*strategy, kSeed, [](const Parameter&) { return 0; });
  strategy->ready({{}});
  Trained trained;
  for (int64_t step = 0; step < steps; ++step) {
    trained.losses.push_back(accumulate(
        model, tiny_batch(step), micro, [&](bool last) { strategy->begin_microbatch(last); },
        [&](const at::Tensor& loss) { strategy->backward({loss}); }));
    trained.norms.push_back(strategy->grad_norm());
    strategy->update(0, [](std::span<UpdateTensor> tensors) {
      const at::NoGradGuard no_grad;
      for (UpdateTensor& tensor : tensors) tensor.value.sub_(tensor.grad, kLearningRate);
    });
    strategy->end_step();
  }
  for (const OwnedTensor& owned : strategy->owned()) {
    const Range& range = owned.range;
    require(range.begin == 0 && !trained.parameters.count(range.name),
            "on one rank, owned() must return each parameter once and whole, but ", range.name,
            " is in pieces");
    trained.parameters[range.name] = owned.value.detach().clone().view(range.global_shape);
  }
  return trained;
}

void require_same(const Trained& actual, const Trained& expected, double bound,
                  const std::string& what) {
  require_near(actual.losses, expected.losses, bound, what + ": the loss");
  require_near(actual.norms, expected.norms, bound, what + ": the gradient norm");
  require(actual.parameters.size() == expected.parameters.size(), what, ": ",
          actual.parameters.size(), " parameters, expected ", expected.parameters.size());
  for (const auto& [name, tensor] : expected.parameters) {
    const auto found = actual.parameters.find(name);
    require(found != actual.parameters.end(), what, ": parameter ", name, " is missing");
    require_close(found->second, tensor, bound, what + ": " + name);
  }
}

namespace {

// Compares one step of plain training: counts must be equal; `bound` is relative, for the loss and
// for each gradient.
void require_same_step(const Trained& actual, const Trained& expected, double bound,
                       const std::string& when) {
  require_near(actual.losses, expected.losses, bound, when + " the loss");
  for (const auto& [name, gradient] : expected.gradients)
    require_close(actual.gradients.at(name), gradient, bound, when + " the gradient of " + name);
  for (size_t i = 0; i < expected.counts.size(); ++i)
    require(at::equal(actual.counts[i], expected.counts[i]), when, " step_counts() differs");
}

void check_recomputation(const ModelFactory& factory) {
  Experiment experiment = tiny_experiment();
  const Trained plain = train_plainly(experiment, factory, 1, kRows);
  experiment.model.recompute = "full";
  const Trained recomputed = train_plainly(experiment, factory, 1, kRows);
  require(recomputed.losses == plain.losses,
          "with recomputation (model.recompute: full) the loss is not bit-identical");
  // The order in which gradients of tied weights add up may differ.
  require_same_step(recomputed, plain, 1e-6, "with recomputation");
}

void check_accumulation(const ModelFactory& factory) {
  const Experiment experiment = tiny_experiment();
  require_same_step(train_plainly(experiment, factory, 1, 1, at::kDouble),
                    train_plainly(experiment, factory, 1, kRows, at::kDouble), 1e-8,
                    "with 4 micro-batches of 1 row instead of one of 4");
}

void check_freed_parameters(const ModelFactory& factory) {
  for (const std::string recompute : {"none", "full"}) {
    Experiment experiment = tiny_experiment();
    experiment.model.recompute = recompute;
    const auto flat = std::make_shared<FlatStrategy>(FlatOptions{}, StrategyContext{});
    require_same(
        train_under(flat, experiment, factory, 3, 2), train_plainly(experiment, factory, 3, 2),
        1e-5, "under a strategy that frees parameters between uses (recompute: " + recompute + ")");
  }
}

}  // namespace

void check_in_model(const Subject& subject) {
  const ModelFactory factory = tiny_factory(&subject);
  check_recomputation(factory);
  check_accumulation(factory);
  check_freed_parameters(factory);
}

}  // namespace dsv3::conformance
