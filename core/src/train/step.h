// One optimizer step.
#pragma once

#include <cmath>
#include <optional>
#include <span>

#include <c10/core/Event.h>

#include "train/training.h"

namespace dsv3 {

/// Finds where non-finite values come from by repeating the step. Returns a sentence that names the
/// first module, in order of computation, with a non-finite output or gradient, and the first
/// parameter for which the backward pass computes a non-finite gradient. Returns "" if everything
/// is finite when repeated. Call it on all ranks between the step's last backward pass and
/// Strategy::end_step(). The repeated forward passes do not count tokens. With `backward`, also
/// repeats the backward passes if the forward passes are finite, which invalidates gradients. With
/// `updated`, the parameters have been updated since the step, as on a GPU: the result then says
/// so, and the step is repeated only if they are finite. With several ranks, the sentence says
/// which of them found the values, and `backward` must be false, because ranks would stop to search
/// at different points.
std::string find_not_finite(Communicator& control, Model& model, Strategy& strategy,
                            const OptimizerSet& optimizers, std::span<const Batch> batches,
                            const LossScale& scale, const std::vector<PassContext>& passes,
                            bool backward, bool updated);

/// Losses and norms of one optimizer step.
struct StepResult {
  int64_t step = 0;
  double loss = 0;  ///< main + weighted MTP (+ z), mean over valid targets
  double main_loss = 0;
  double mtp_loss = 0;   ///< mean over prediction depths, unweighted; 0 without MTP
  double grad_norm = 0;  ///< before clipping
  /// Metrics that components recorded; logged steps only.
  std::vector<std::pair<std::string, double>> metrics;
  bool skipped = false;  ///< the step had non-finite values and `not_finite` is skip

  bool is_finite() const { return std::isfinite(loss) && std::isfinite(grad_norm); }
};

/// A step whose losses and gradient norm the GPU may not have computed yet.
class PendingStep {
 public:
  /// `values` is a float64 tensor on the device: the total, main and MTP losses, the gradient norm
  /// and the recorded metrics, whose names are `names`.
  PendingStep(int64_t step, const at::Tensor& values, std::vector<std::string> names,
              std::vector<Batch> batches, LossScale scale);
  /// Waits for the device and returns the values.
  std::vector<double> read() const;

  int64_t step;
  std::vector<std::string> names;
  std::vector<Batch> batches;
  LossScale scale;

 private:
  at::Tensor values_;  // pinned
  c10::Event copied_;
};

/// Runs optimizer steps. On a GPU, a step is queued without waiting for its result, unless
/// `train.not_finite` is skip.
class Stepper {
 public:
  explicit Stepper(Training& training) : run_(training) {}
  /// Trains step `state.step` + 1 and calls the callbacks' on_step_end().
  void step();
  /// Waits for the pending step, if any, and stores its result. Throws if the result is not finite.
  void finish();
  /// The result of the last step that has been read.
  const StepResult& result() const { return result_; }
  /// The schedule's learning-rate factor in the last step.
  double lr_factor() const { return lr_factor_; }
  /// Warns about the number of steps without a valid target, if there were any.
  void report_no_targets() const;

 private:
  std::vector<Batch> next_batches(at::Tensor& targets);
  /// Records when the last batch was made.
  void trace_loading();
  /// Updates the parameters if `values` (total, main and MTP loss, gradient norm) are finite.
  void update_if_finite(const at::Tensor& values, std::span<const Batch> batches,
                        const LossScale& scale);
  /// Updates the parameters without waiting for `values`. If they are not finite, uses gradients of
  /// 0.
  void update_on_device(const at::Tensor& values);
  void update_parameters();
  /// Runs the forward and backward passes. Returns the sums of the total, main and MTP losses as
  /// [3] on the device.
  at::Tensor run_micro_batches(std::span<const Batch> batches, const LossScale& scale);
  LossParts forward(const Batch& batch, const LossScale& scale, const PassContext& context);
  void backward(const LossParts& parts);
  /// Waits for the sums of gradients over ranks. Returns their norm.
  at::Tensor reduce();
  /// Returns the contexts of a step's micro-batches.
  std::vector<PassContext> passes(int64_t step) const;
  LossScale scale_of(const at::Tensor& targets) const;
  /// Extends the run's data hash by a step's rows in global order. `digests` are those of each
  /// rank's rows, so the hash does not depend on the number of ranks or the micro-batch size.
  void hash_rows(const std::vector<std::string>& digests);
  /// Calls on_step_end() of layers, positions and callbacks, and clears the layers' counts. Layers
  /// and positions are not called after a skipped step.
  void end_step(bool skipped);
  /// Counts a step without a valid target, and warns about the first.
  void warn_about_no_targets();
  /// Warns about a skipped step, or throws if `train.not_finite` is stop.
  void report_not_finite(const StepResult& result, const std::string& cause) const;
  double progress() const { return double(run_.state.step + 1) / double(run_.steps); }

  Training& run_;
  Metrics metrics_{run_.sink};
  StepResult result_;
  std::optional<PendingStep> pending_;
  double lr_factor_ = 0;
  int64_t steps_without_targets_ = 0;
};

}  // namespace dsv3
