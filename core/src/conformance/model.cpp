#include "conformance/model.h"

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

void check_recomputation(const ModelFactory& factory) {
  Experiment experiment = tiny_experiment();
  const FirstStep plain = first_step(experiment, factory, kRows, at::kFloat);
  experiment.model.recompute = "full";
  const FirstStep again = first_step(experiment, factory, kRows, at::kFloat);
  require(again.result.loss == plain.result.loss,
          "with recomputation (model.recompute: full) the loss is " +
              std::to_string(again.result.loss) + ", without " +
              std::to_string(plain.result.loss));
  // The order in which gradients of tied weights add up may differ.
  for (const auto& [name, gradient] : plain.result.gradients)
    require_close(again.result.gradients.at(name), gradient, 1e-6,
                  "with recomputation the gradient of " + name);
  for (size_t i = 0; i < plain.counts.size(); ++i)
    require(at::equal(again.counts[i], plain.counts[i]),
            "with recomputation step_counts() differs: counted twice?");
}

void check_accumulation(const ModelFactory& factory) {
  const Experiment experiment = tiny_experiment();
  const FirstStep whole = first_step(experiment, factory, kRows, at::kDouble);
  const FirstStep parts = first_step(experiment, factory, 1, at::kDouble);
  require(std::abs(parts.result.loss - whole.result.loss) <= 1e-9 * std::abs(whole.result.loss),
          "4 micro-batches of 1 row have the loss " + std::to_string(parts.result.loss) +
              ", one of 4 rows " + std::to_string(whole.result.loss));
  for (const auto& [name, gradient] : whole.result.gradients)
    require_close(parts.result.gradients.at(name), gradient, 1e-8,
                  "with 4 micro-batches of 1 row instead of one of 4, the gradient of " + name);
  for (size_t i = 0; i < whole.counts.size(); ++i)
    require(at::equal(parts.counts[i], whole.counts[i]),
            "with other micro-batches step_counts() differs");
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
