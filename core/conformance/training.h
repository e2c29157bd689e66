// A tiny model trained by hand and by a strategy, for the checks that compare the two.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/runtime/model.h>

#include "conformance/suite.h"

namespace dsv3::conformance {

using Named = std::map<std::string, at::Tensor>;

constexpr int64_t kVocab = 29, kRows = 4, kSequence = 12, kMtpDepth = 1;

/// Two layers, one MTP module and a tied head.
Experiment tiny_experiment();

/// Reference layers, except for the subject if it is a layer's component.
ModelFactory tiny_factory(const Subject* subject = nullptr);

/// Rows of several documents that differ from step to step.
Batch tiny_batch(int64_t step);

struct Trained {
  std::vector<double> losses, norms;
  Named parameters;                ///< after the last step
  Named gradients;                 ///< of the last step; only of plain training
  std::vector<at::Tensor> counts;  ///< step_counts() after all steps; only of plain training
};
/// Trains `steps` steps of gradient descent by plain autograd.
Trained train_plainly(const Experiment& experiment, const ModelFactory& factory, int64_t steps,
                      int64_t micro, at::ScalarType dtype = at::kFloat);
/// The same under `strategy`.
Trained train_under(const std::shared_ptr<Strategy>& strategy, const Experiment& experiment,
                    const ModelFactory& factory, int64_t steps, int64_t micro);

/// Throws a Violation if losses, norms or parameters differ by more than `bound`, relatively.
void require_same(const Trained& actual, const Trained& expected, double bound,
                  const std::string& what);

}  // namespace dsv3::conformance
