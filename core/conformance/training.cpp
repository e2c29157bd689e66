#include <cmath>

#include <torch/csrc/autograd/autograd.h>

#include "conformance/flat_strategy.h"
#include "conformance/layers.h"
#include "conformance/reference_layers.h"

namespace dsv3::conformance {
namespace {

/// Sets `factory` to a function that constructs the component under test.
template <class Base, class Context>
void set_factory(std::function<std::shared_ptr<Base>(const Context&)>& factory,
                 const Subject& subject) {
  factory = [&subject](const Context& context) { return construct<Base>(subject, context); };
}

/// Returns a factory function for a reference layer.
template <class Layer>
std::shared_ptr<Layer> make_layer(const LayerContext& context) {
  return std::make_shared<Layer>(context);
}

void require_near(const std::vector<double>& actual, const std::vector<double>& expected,
                  double bound, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    require(std::abs(actual[i] - expected[i]) <= bound * std::abs(expected[i]), what, " of step ",
            i + 1, " is ", actual[i], ", expected ", expected[i]);
}

}  // namespace

Experiment tiny_experiment(const std::string& recompute, bool tied_head) {
  Experiment experiment;
  experiment.model.hidden = kHidden;
  experiment.model.layers = 2;
  experiment.model.recompute = recompute;
  experiment.model.tied_head = tied_head;
  experiment.train.sequence = kSequence;
  experiment.init.std = 0.2;  // large enough that every part of the model affects the loss
  experiment.mtp.depth = kMtpDepth;
  return experiment;
}

ModelFactory tiny_factory(const Subject* subject) {
  ModelFactory factory{make_layer<ReferenceAttention>, make_layer<ReferenceFeedForward>,
                       [](const PositionContext& context) {
                         return layer_context(at::kFloat).make_position(context.rotary_dim);
                       }};
  if (!subject) return factory;
  const Kind kind = subject->component.kind;
  if (kind == Kind::attention) set_factory(factory.attention, *subject);
  if (kind == Kind::feed_forward) set_factory(factory.feed_forward, *subject);
  if (kind == Kind::position) {
    set_factory(factory.position, *subject);
    factory.attention = make_layer<RotaryAttention>;
  }
  return factory;
}

Batch tiny_batch(int64_t step) {
  Batch batch;
  const at::Tensor ids = at::arange(kRows * (kSequence + 1)).view({kRows, kSequence + 1});
  batch.tokens = ids.mul(7 + 2 * step).add(3 * step).remainder(kVocab);
  batch.document_ids = at::zeros_like(ids);
  batch.document_ids.narrow(0, 1, 1).narrow(1, 5, kSequence - 4).fill_(1);
  batch.document_ids.narrow(0, 2, 1).narrow(1, 3, 4).fill_(2);
  batch.document_ids.narrow(0, 3, 1).narrow(1, 9, kSequence - 8).fill_(-1);
  return batch;
}

double accumulate(Model& model, int64_t step, int64_t micro, Strategy* strategy, int64_t rank,
                  int64_t ranks) {
  const Batch batch = tiny_batch(step);
  const std::vector<int64_t> targets = count_targets(batch, kMtpDepth);
  const LossScale scale{double(targets[0]), {double(targets[1])}, kRows};
  double loss = 0;
  for (int64_t row = rank * micro; row < kRows; row += ranks * micro) {
    if (strategy) strategy->begin_microbatch(row + ranks * micro >= kRows);
    const Batch rows{batch.tokens.narrow(0, row, micro), batch.document_ids.narrow(0, row, micro)};
    const StepKey key{.seed = kSeed, .step = step + 1, .first_row = row};
    const at::Tensor total = model.loss(rows, scale, {.key = key}).total;
    if (strategy)
      strategy->backward({total});
    else
      torch::autograd::backward({total}, {});
    loss += total.item<double>();
  }
  return loss;
}

Trained train_plainly(const Experiment& experiment, const ModelFactory& factory, int64_t steps,
                      int64_t micro, at::ScalarType dtype) {
  Model model(experiment, kVocab, factory, at::kCPU, dtype);
  model.initialise(kSeed);
  Trained trained;
  for (int64_t step = 0; step < steps; ++step) {
    for (const Parameter& parameter : model.store().parameters())
      parameter.tensor.mutable_grad() = at::Tensor();
    trained.losses.push_back(accumulate(model, step, micro));
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
                    const ModelFactory& factory, int64_t steps, int64_t micro, at::ScalarType dtype,
                    at::Device device) {
  Model model(experiment, kVocab, factory, device, dtype);
  model.adopt(*strategy, kSeed, [](const Parameter&) { return 0; });
  strategy->ready({{}});
  Trained trained;
  for (int64_t step = 0; step < steps; ++step) {
    trained.losses.push_back(accumulate(model, step, micro, strategy.get()));
    trained.norms.push_back(strategy->grad_norm().item<double>());
    strategy->update(0, [](std::span<UpdateTensor> tensors) {
      const at::NoGradGuard no_grad;
      for (UpdateTensor& tensor : tensors) tensor.value.sub_(tensor.grad, kLearningRate);
    });
    strategy->end_step();
  }
  for (const OwnedTensor& owned : strategy->owned()) {
    const Range& range = owned.range;
    require(range.begin == 0 && !trained.parameters.count(range.name),
            "on one rank, owned() must return each parameter as a whole, but ", range.name,
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
    require(actual.parameters.contains(name), what, ": parameter ", name, " is missing");
    require_close(actual.parameters.at(name), tensor, bound, what + ": " + name);
  }
  for (const auto& [name, gradient] : actual.gradients)
    require_close(gradient, expected.gradients.at(name), bound, what + ": the gradient of " + name);
  for (size_t i = 0; i < actual.counts.size(); ++i)
    require(at::equal(actual.counts[i], expected.counts[i]), what, ": step_counts() differs");
}

void model_check(const AddCheck& check) {
  check("model", "trains identically with recomputation and sharding", [](const Subject& subject) {
    const ModelFactory factory = tiny_factory(&subject);
    const Trained plain = train_plainly(tiny_experiment("none"), factory, 1, kRows);
    const Trained recomputed = train_plainly(tiny_experiment("full"), factory, 1, kRows);
    for (const double loss : plain.losses)
      require(std::isfinite(loss), "the loss of a model with the component", kNotFinite);
    require(recomputed.losses == plain.losses,
            "with recomputation (model.recompute: full) the loss is not bit-identical");
    // The gradients of tied weights may be added in a different order.
    require_same(recomputed, plain, 1e-6, "with recomputation");
    const auto in_doubles = [&](int64_t micro) {
      return train_plainly(tiny_experiment(), factory, 1, micro, at::kDouble);
    };
    require_same(in_doubles(1), in_doubles(kRows), 1e-8,
                 "with four one-row micro-batches instead of one four-row micro-batch");
    for (const std::string recompute : {"none", "full"}) {
      const Experiment experiment = tiny_experiment(recompute);
      const auto flat = std::make_shared<FlatStrategy>(FlatOptions{}, StrategyContext{});
      require_same(
          train_under(flat, experiment, factory, 3, 2), train_plainly(experiment, factory, 3, 2),
          1e-5,
          "under a strategy that frees parameters between uses (recompute: " + recompute + ")");
    }
  });
}

}  // namespace dsv3::conformance
