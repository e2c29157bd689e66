#include "conformance/training.h"

#include <cmath>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "conformance/layers.h"
#include "conformance/reference_layers.h"

namespace dsv3::conformance {
namespace {

constexpr double kLearningRate = 0.05;
constexpr uint64_t kSeed = 3;

double norm_of(const Named& gradients) {
  double sum = 0;
  for (const auto& [name, gradient] : gradients)
    sum += gradient.to(at::kDouble).square().sum().item<double>();
  return std::sqrt(sum);
}

}  // namespace

Experiment tiny_experiment() {
  Experiment experiment;
  experiment.model.hidden = kHidden;
  experiment.model.layers = 2;
  experiment.model.tied_head = true;
  experiment.train.sequence = kSequence;
  experiment.init.std = 0.2;  // so that every part of the model matters
  experiment.mtp.depth = kMtpDepth;
  return experiment;
}

ModelFactory tiny_factory(const Subject* subject) {
  ModelFactory factory;
  factory.attention = [](const LayerContext& context) {
    return std::make_shared<ReferenceAttention>(context);
  };
  factory.feed_forward = [](const LayerContext& context) {
    return std::make_shared<ReferenceFeedForward>(context);
  };
  factory.position = [](const PositionContext& context) {
    return layer_context(at::kFloat).make_position(context.rotary_dim);
  };
  if (!subject) return factory;
  const Subject& checked = *subject;
  if (checked.component.kind == Kind::attention)
    factory.attention = [&checked](const LayerContext& context) {
      return make<Attention>(checked, context);
    };
  if (checked.component.kind == Kind::feed_forward)
    factory.feed_forward = [&checked](const LayerContext& context) {
      return make<FeedForward>(checked, context);
    };
  if (checked.component.kind == Kind::position) {
    factory.position = [&checked](const PositionContext& context) {
      return make<Position>(checked, context);
    };
    factory.attention = [](const LayerContext& context) {
      return std::make_shared<RotaryAttention>(context);
    };
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

Batch rows_of(const Batch& batch, int64_t first, int64_t count) {
  return {batch.tokens.narrow(0, first, count), batch.document_ids.narrow(0, first, count)};
}

LossScale scale_of(const Batch& batch) {
  const std::vector<int64_t> counts = count_targets(batch, kMtpDepth);
  LossScale scale;
  scale.main_targets = static_cast<double>(counts[0]);
  scale.mtp_targets.assign(counts.begin() + 1, counts.end());
  scale.sequences = batch.tokens.size(0);
  return scale;
}

StepResult plain_step(Model& model, const Batch& batch, int64_t micro) {
  const LossScale scale = scale_of(batch);
  for (const Parameter& parameter : model.store().parameters())
    parameter.tensor.mutable_grad() = at::Tensor();
  StepResult result;
  for (int64_t row = 0; row < kRows; row += micro) {
    const LossParts parts = model.loss(rows_of(batch, row, micro), scale);
    torch::autograd::backward({parts.total}, {});
    result.loss += parts.total.item<double>();
  }
  for (const Parameter& parameter : model.store().parameters()) {
    const at::Tensor& gradient = parameter.tensor.grad();
    result.gradients[parameter.name] =
        gradient.defined() ? gradient.clone() : at::zeros_like(parameter.tensor);
  }
  result.norm = norm_of(result.gradients);
  return result;
}

Trained train_plainly(const Experiment& experiment, const ModelFactory& factory, int64_t steps,
                      int64_t micro) {
  Model model(experiment, kVocab, factory, at::kCPU);
  model.initialise(kSeed);
  Trained trained;
  for (int64_t step = 0; step < steps; ++step) {
    const StepResult result = plain_step(model, tiny_batch(step), micro);
    trained.losses.push_back(result.loss);
    trained.norms.push_back(result.norm);
    const at::NoGradGuard no_grad;
    for (const Parameter& parameter : model.store().parameters())
      parameter.tensor.detach().sub_(result.gradients.at(parameter.name), kLearningRate);
  }
  for (const Parameter& parameter : model.store().parameters())
    trained.parameters[parameter.name] = parameter.tensor.detach().clone();
  return trained;
}

Trained train_under(const std::shared_ptr<Strategy>& strategy, const Experiment& experiment,
                    const ModelFactory& factory, int64_t steps, int64_t micro) {
  Model model(experiment, kVocab, factory, at::kCPU);
  model.adopt(*strategy, kSeed, [](const Parameter&) { return 0; });
  strategy->ready({{}});
  Trained trained;
  for (int64_t step = 0; step < steps; ++step) {
    const Batch batch = tiny_batch(step);
    const LossScale scale = scale_of(batch);
    double loss = 0;
    for (int64_t row = 0; row < kRows; row += micro) {
      strategy->begin_microbatch(row + micro >= kRows);
      const LossParts parts = model.loss(rows_of(batch, row, micro), scale);
      strategy->backward({parts.total});
      loss += parts.total.item<double>();
    }
    trained.losses.push_back(loss);
    trained.norms.push_back(strategy->grad_norm());
    strategy->update(0, [](std::span<UpdateTensor> tensors) {
      const at::NoGradGuard no_grad;
      for (UpdateTensor& each : tensors) each.value.sub_(each.grad, kLearningRate);
    });
    strategy->end_step();
  }
  for (const OwnedTensor& owned : strategy->owned()) {
    require(owned.range.begin == 0 && !trained.parameters.count(owned.range.name),
            "on one rank, owned() should give each parameter once and whole; " + owned.range.name +
                " is in pieces");
    trained.parameters[owned.range.name] =
        owned.value.detach().clone().view(owned.range.global_shape);
  }
  return trained;
}

void require_same(const Trained& actual, const Trained& expected, double bound,
                  const std::string& what) {
  const auto numbers = [&](const std::vector<double>& a, const std::vector<double>& b,
                           const std::string& name) {
    for (size_t i = 0; i < b.size(); ++i)
      require(std::abs(a[i] - b[i]) <= bound * std::abs(b[i]),
              what + ": " + name + " of step " + std::to_string(i + 1) + " is " + c10::str(a[i]) +
                  ", expected " + c10::str(b[i]));
  };
  numbers(actual.losses, expected.losses, "the loss");
  numbers(actual.norms, expected.norms, "the gradient's norm");
  require(actual.parameters.size() == expected.parameters.size(),
          what + ": " + std::to_string(actual.parameters.size()) + " parameters, expected " +
              std::to_string(expected.parameters.size()));
  for (const auto& [name, tensor] : expected.parameters) {
    const auto found = actual.parameters.find(name);
    require(found != actual.parameters.end(), what + ": there is no parameter " + name);
    require_close(found->second, tensor, bound, what + ": " + name);
  }
}

}  // namespace dsv3::conformance
