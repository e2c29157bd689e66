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

/// Reference layers; the subject in its own place when it is a layer's component.
ModelFactory tiny_factory(const Subject* subject = nullptr);

/// Rows of several documents; other ones each step.
Batch tiny_batch(int64_t step);

/// Rows first .. first + count of `batch`.
Batch rows_of(const Batch& batch, int64_t first, int64_t count);

/// What a step of `batch` is divided by.
LossScale scale_of(const Batch& batch);

/// What one step leaves behind.
struct StepResult {
  double loss = 0, norm = 0;
  Named gradients;
};

/// Sums gradients of `batch` in micro-batches of `micro` rows by plain autograd.
StepResult plain_step(Model& model, const Batch& batch, int64_t micro);

/// Losses of `steps` steps of gradient descent by plain autograd, and the parameters after them.
struct Trained {
  std::vector<double> losses, norms;
  Named parameters;
};
Trained train_plainly(const Experiment& experiment, const ModelFactory& factory, int64_t steps,
                      int64_t micro);
/// The same under `strategy`.
Trained train_under(const std::shared_ptr<Strategy>& strategy, const Experiment& experiment,
                    const ModelFactory& factory, int64_t steps, int64_t micro);

/// Throws Violation when losses, norms or parameters differ by more than `bound`, relatively.
void require_same(const Trained& actual, const Trained& expected, double bound,
                  const std::string& what);

}  // namespace dsv3::conformance
