#include "conformance/model.h"

#include <cmath>

#include <ATen/ATen.h>

#include "conformance/flat_strategy.h"
#include "conformance/layers.h"
#include "conformance/training.h"

namespace dsv3::conformance {
namespace {

struct FirstStep {
  StepResult result;
  std::vector<at::Tensor> counts;
};

FirstStep first_step(const Experiment& experiment, const ModelFactory& factory, int64_t micro,
                     at::ScalarType dtype) {
  Model model(experiment, kVocab, factory, at::kCPU, dtype);
  model.initialise(5);
  FirstStep first{plain_step(model, tiny_batch(0), micro), {}};
  for (const auto& layer : model.feed_forward())
    if (const at::Tensor counts = layer->step_counts(); counts.defined())
      first.counts.push_back(counts.clone());
  return first;
}

// Counts must be equal; `bound` is relative, on the loss and on each gradient.
void require_same_step(const FirstStep& actual, const FirstStep& expected, double bound,
                       const std::string& what) {
  const double loss = expected.result.loss;
  require(std::abs(actual.result.loss - loss) <= bound * std::abs(loss),
          what + " the loss is " + c10::str(actual.result.loss) + ", not " + c10::str(loss));
  for (const auto& [name, gradient] : expected.result.gradients)
    require_close(actual.result.gradients.at(name), gradient, bound,
                  what + " the gradient of " + name);
  for (size_t i = 0; i < expected.counts.size(); ++i)
    require(at::equal(actual.counts[i], expected.counts[i]), what + " step_counts() differs");
}

void check_recomputation(const ModelFactory& factory) {
  Experiment experiment = tiny_experiment();
  const FirstStep plain = first_step(experiment, factory, kRows, at::kFloat);
  experiment.model.recompute = "full";
  const FirstStep again = first_step(experiment, factory, kRows, at::kFloat);
  require(again.result.loss == plain.result.loss,
          "with recomputation (model.recompute: full) the loss has other bits");
  // The order in which gradients of tied weights add up may differ.
  require_same_step(again, plain, 1e-6, "with recomputation");
}

void check_accumulation(const ModelFactory& factory) {
  const Experiment experiment = tiny_experiment();
  require_same_step(first_step(experiment, factory, 1, at::kDouble),
                    first_step(experiment, factory, kRows, at::kDouble), 1e-8,
                    "with 4 micro-batches of 1 row instead of one of 4");
}

void check_freed_parameters(const ModelFactory& factory) {
  for (const char* recompute : {"none", "full"}) {
    Experiment experiment = tiny_experiment();
    experiment.model.recompute = recompute;
    const auto flat = std::make_shared<FlatStrategy>(FlatOptions{}, StrategyContext{});
    require_same(train_under(flat, experiment, factory, 3, 2),
                 train_plainly(experiment, factory, 3, 2), 1e-5,
                 "under a strategy that frees parameters between uses (recompute: " +
                     std::string(recompute) + ")");
  }
}

}  // namespace

void check_in_model(const Subject& subject) {
  const ModelFactory factory = tiny_factory(&subject);
  check_recomputation(factory);
  check_accumulation(factory);
  check_freed_parameters(factory);
}

void require_saved_values(double declared, double measured) {
  require(declared > 0, "saved_values_per_token() is not positive");
  require(declared >= 0.5 * measured && declared <= 2 * measured + 1,
          "saved_values_per_token() says " + c10::str(declared) + ", but " + c10::str(measured) +
              " values a token stay alive between forward and backward");
}

}  // namespace dsv3::conformance
