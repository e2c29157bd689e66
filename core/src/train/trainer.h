// The training loop and everything that a step uses.
#pragma once

#include <cmath>
#include <optional>
#include <span>

#include <c10/core/Event.h>

#include <dsv3/runtime/data.h>
#include <dsv3/runtime/metrics_file.h>
#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/schedule.h>

#include "sdk/metric_sink.h"
#include "track/sender.h"
#include "train/progress.h"

namespace dsv3 {

/// Returns `model.vocab`, or the tokenizer's vocabulary size for `auto`. Throws if model.vocab is
/// too small or cannot be determined. `tokenizer` may be null.
int64_t vocab_of(const Experiment& experiment, const Tokenizer* tokenizer);

/// Returns the libraries of an experiment's components, in the order in which they were loaded.
/// Excludes libraries that the experiment does not use, such as that of a replaced plugin.
std::vector<LoadedLibrary> libraries_of(const Experiment& experiment, const Plugins& plugins);

/// Finds where non-finite values come from by repeating the step. Returns a sentence that names the
/// first module, in order of computation, with a non-finite output or gradient, and the first
/// parameter for which the backward pass computes a non-finite gradient. Returns "" if everything
/// is finite when repeated. Call it on all ranks between the step's last backward pass and
/// Strategy::end_step(). The repeated forward passes do not count tokens. With `backward`, also
/// repeats the backward passes if the forward passes are finite, which invalidates gradients.
std::string find_not_finite(Model& model, Strategy& strategy, const OptimizerSet& optimizers,
                            std::span<const Batch> batches, const LossScale& scale,
                            const std::vector<PassContext>& passes, bool backward);

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

/// Trains one run from its first to its last step. Call `run` only once.
class Trainer {
 public:
  Trainer(Experiment experiment, Plugins& plugins, RunFolder& folder, bool quiet);

  /// Resumes from a verified checkpoint. The next step is bit-identical to that of an uninterrupted
  /// run.
  void restore(const StoredCheckpoint& checkpoint);
  /// Starts a new run with the weights and buffers of a stored model and saves them as step 0.
  void start_from(const StoredModel& stored);
  /// Trains until the last step or a signal. Returns the exit code.
  int run(bool resumed);

  int64_t step() const { return step_; }
  at::Device device() const { return device_; }
  /// SHA-256 of all parameters' initial values, in declaration order.
  const std::string& init_hash() const { return init_hash_; }
  /// Hash of all rows used for training so far, in order. Does not depend on the micro-batch size.
  const std::string& data_hash() const { return data_hash_; }

 private:
  /// Trains one step. On a GPU it does not wait for the result, unless `not_finite` is skip; the
  /// next step or finish_step() reads it.
  void train_step();
  /// Updates the parameters if `values` (total, main and MTP loss, gradient norm) are finite.
  void update_if_finite(const at::Tensor& values, std::span<const Batch> batches,
                        const LossScale& scale);
  /// Updates the parameters without waiting for `values`. If they are not finite, uses gradients of
  /// 0.
  void update_on_device(const at::Tensor& values);
  /// Waits for the pending step, if any, and stores its result. Throws if the result is not finite.
  void finish_step();
  /// Whether metrics are recorded after `step`.
  bool is_logged(int64_t step) const;
  /// One element per micro-batch of step `step` + 1.
  std::vector<PassContext> passes(int64_t step) const;
  /// Runs a step's forward and backward passes. Returns the sums of the total, main and MTP losses
  /// as [3] on the device.
  at::Tensor run_micro_batches(std::span<const Batch> batches, const LossScale& scale);
  LossScale scale_of(const at::Tensor& targets) const;
  OptimStep optim_step();
  void hash_rows(const Batch& batch);
  /// Calls on_step_end() of layers and positions, unless the step was skipped, and clears the
  /// layers' counts.
  void end_layers_step(bool skipped);
  /// Warns about a skipped step, or throws if `train.not_finite` is stop.
  void report_not_finite(const StepResult& result, const std::string& cause) const;
  std::optional<double> validate();
  void write_samples();
  void save(std::optional<double> val_loss);
  void load_model(const StoredModel& stored);
  void mark_interval();
  void record(const StepResult* result, std::optional<double> val_loss);
  void announce() const;
  void start_trackers(bool resumed);
  std::string hash_parameters();
  static bool divides(int64_t every, int64_t step) { return every > 0 && step % every == 0; }
  bool due(int64_t every) const { return divides(every, step_); }

  Experiment experiment_;
  Plugins& plugins_;
  RunFolder& folder_;
  at::Device device_;
  std::shared_ptr<Communicator> world_ = local_communicator();
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<Strategy> strategy_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<OptimizerSet> optimizers_;
  std::shared_ptr<Schedule> schedule_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<Loader> validation_;
  Json validation_start_;
  CheckpointStore checkpoints_;
  MetricsFile metrics_;
  std::unique_ptr<TrackerSender> sender_;
  Progress progress_;
  ModelFigures figures_;

  int64_t micro_batch_ = 0, accumulate_ = 0, total_steps_ = 0;
  int64_t step_ = 0, updates_ = 0, tokens_ = 0;  // updates_: number of steps that were not skipped
  double lr_factor_ = 0;
  StepResult result_;  ///< result of the last finished step
  std::optional<PendingStep> pending_;
  std::shared_ptr<MetricSink> sink_ = std::make_shared<MetricSink>();
  double logged_seconds_ = 0, logged_wait_ = 0;  // values at the last logged step
  int64_t logged_tokens_ = 0;
  std::string init_hash_, data_hash_;
};

}  // namespace dsv3
