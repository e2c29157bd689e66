// What a run trains: its components and its state.
#pragma once

#include <dsv3/runtime/data.h>
#include <dsv3/runtime/metrics_file.h>
#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/schedule.h>

#include "ranks/recorded_metrics.h"
#include "train/callbacks.h"
#include "train/evaluation_weights.h"
#include "train/run_state.h"
#include "train/trace.h"
#include "train/tracking.h"

namespace dsv3 {

/// Returns `model.vocab`, or the tokenizer's vocabulary size for `auto`. Throws if model.vocab is
/// too small or cannot be determined. `tokenizer` may be null.
int64_t vocab_of(const Experiment& experiment, const Tokenizer* tokenizer);

/// Same as above, before the tokenizer has been read. Reads it only if `model.vocab` is auto.
int64_t vocab_of(const Experiment& experiment, Plugins& plugins);

/// Returns the libraries of an experiment's components, in the order in which they were loaded.
/// Excludes libraries that the experiment does not use, such as that of a replaced plugin.
std::vector<LoadedLibrary> libraries_of(const Experiment& experiment, const Plugins& plugins);

struct Training {
  Training(Experiment experiment, Plugins& plugins, RunFolder& folder, Ranks ranks);

  /// Resumes from a verified checkpoint. The next step is bit-identical to that of an uninterrupted
  /// run.
  void restore(const StoredCheckpoint& checkpoint);
  /// Starts a new run with the weights and buffers of a stored model and saves them as step 0.
  void start_from(const StoredModel& stored);
  /// Starts a new run from the full state of another run's checkpoint and saves it. Callbacks keep
  /// their states only if both runs have the same callbacks.
  void branch_from(const StoredCheckpoint& checkpoint);
  /// Saves a checkpoint of the last completed step. `replaces` as in CheckpointContent. Collective,
  /// like the next two.
  void save(std::optional<double> val_loss, bool replaces = false);
  /// Copies what save() stores, and writes it while training continues, if the tensors are large
  /// and the copy fits in memory. Otherwise the same as save().
  void save_in_background(std::optional<double> val_loss);
  /// Completes the checkpoint that is saved in the background, if there is one and all ranks have
  /// written it. Waits for them if `wait` is true.
  void finish_save(bool wait);

  /// Evaluates with the optimizers' evaluation weights while the returned object exists.
  EvaluationWeights evaluation_weights() {
    return EvaluationWeights(*strategy, *optimizers, state.updates);
  }
  /// Exit code of the stop that a signal has requested on any rank; 0 = none. Collective.
  int requested_stop() const;
  /// Whether metrics are recorded after `step`.
  bool is_logged(int64_t step) const;
  int64_t tokens_per_step() const { return experiment.train.batch * experiment.train.sequence; }
  /// Whether `step` is a multiple of the interval `every`; 0 = never.
  static bool divides(int64_t every, int64_t step) { return every > 0 && step % every == 0; }

  Experiment experiment;
  Plugins& plugins;
  RunFolder& folder;
  at::Device device;
  const Ranks ranks;
  std::shared_ptr<MetricSink> sink = std::make_shared<MetricSink>();
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null if the experiment has none
  std::shared_ptr<Strategy> strategy;
  std::unique_ptr<Model> model;
  std::unique_ptr<OptimizerSet> optimizers;
  std::shared_ptr<Schedule> schedule;
  std::unique_ptr<Loader> loader;
  CallbackSet callbacks;
  CheckpointStore checkpoints;
  std::optional<MetricsFile> metrics;  ///< on the first rank only
  Tracking tracking;
  Trace trace;
  record::Values changes;  ///< settings that a resumed run has changed, with their new values
  ModelFigures model_figures;
  int64_t micro_batch = 0;  ///< rows per rank and micro-batch
  int64_t accumulate = 0;   ///< micro-batches per step
  int64_t steps = 0;        ///< total number of steps
  RunState state;
  Json initial_hashes = Json::object();     ///< of each parameter's initial values
  std::string documents_hash;               ///< of the training documents, whatever the seed
  std::optional<double> restored_val_loss;  ///< of the checkpoint from which the run resumed
  double seconds = 0;  ///< time spent in steps by this process, without validation and saving

 private:
  /// Returns this rank's tensors and the state of the run.
  CheckpointContent collect(std::optional<double> val_loss);
  void add_state(CheckpointContent& content);
  /// Whether to save in the background.
  bool is_worth_copying(const CheckpointContent& content) const;
  void saved(const StoredCheckpoint& checkpoint);
  void load_model(const StoredModel& stored);
  void load_state(const StoredCheckpoint& checkpoint);

  std::shared_ptr<PendingCheckpoint> pending_;  // saved in the background; null = none
};

}  // namespace dsv3
