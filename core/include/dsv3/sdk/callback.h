// Interface for callbacks, which observe a run and may stop it.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

#include <dsv3/sdk/component.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

/// The update of one piece of a parameter in the current step.
struct ParameterUpdate {
  const Range& range;
  Role role = Role::matrix;
  std::string optimizer;        ///< name of the plugin, e.g. "muon"
  bool whole_matrices = false;  ///< the optimizer's whole_matrices()
  at::Tensor grad;              ///< fp32, after clipping
  at::Tensor change;            ///< fp32, new value minus old value, of the same shape
  at::Tensor value;             ///< fp32, the new value, of the same shape; read-only
};

/// State of a run at the end of a step.
struct StepInfo {
  int64_t step = 0, steps = 0;  ///< number of completed steps, and of all steps in the run
  int64_t tokens = 0;           ///< number of training tokens so far, over all ranks
  Metrics metrics = {};         ///< recorded on all ranks, which combines the ranks' values
};

struct CheckpointInfo {
  int64_t step = 0;
  std::string folder;
};

/// Lets a callback act on the run.
class RunControl {
 public:
  virtual ~RunControl();
  /// Ends the run after the current step, as if it were the last one: the run validates, saves a
  /// checkpoint and exits with code 0. The log contains `reason`.
  virtual void stop(const std::string& reason) = 0;
};

/// Observes a run. All calls come from the training thread, in the same order on all ranks.
class Callback : public Pluggable {
 public:
  ~Callback() override;
  virtual void on_run_start(const RunInfo&) {}
  /// Whether on_update() is called. It costs a copy of each updated piece in logged steps.
  virtual bool watches_updates() const { return false; }
  /// Called in logged steps after an optimizer has updated `updates`, several times per step with
  /// disjoint pieces, each on one of the ranks that update it. Record results with `metrics`, which combines
  /// them over calls and ranks.
  virtual void on_update(std::span<const ParameterUpdate>, const Metrics&) {}
  /// Called after every step. On a GPU, the step's values may not have been computed yet.
  virtual void on_step_end(const StepInfo&, RunControl&) {}
  /// Called with the metrics of a logged step, including validation, after they were written to
  /// metrics.jsonl. Excludes system metrics, so the values are identical on all ranks. A callback
  /// that needs the loss of every step needs train.log_every: 1, because reading it makes the host
  /// wait for a GPU.
  virtual void on_metrics(const Event&, RunControl&) {}
  virtual void on_checkpoint_saved(const CheckpointInfo&) {}
  virtual void on_run_end(RunStatus) {}
  /// Returns the callback's state after the last completed step, for checkpoints. A run that
  /// resumes passes it to load_state() before on_run_start(). Numbers must be finite, because JSON
  /// has no others.
  virtual nlohmann::json state() const;
  virtual void load_state(const nlohmann::json&) {}
};

}  // namespace dsv3
