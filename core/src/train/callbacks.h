// A run's callbacks.
#pragma once

#include <functional>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/callback.h>
#include <dsv3/support/json.h>

namespace dsv3 {

/// Passes a run's events to its callbacks, in the experiment's order.
class CallbackSet final : public RunControl {
 public:
  CallbackSet(const Experiment& experiment, Plugins& plugins);

  /// Returns a function that passes updates on with `metrics`; empty if no callback watches them.
  std::function<void(std::span<const ParameterUpdate>)> update_observer(Metrics metrics);
  void run_started(const RunInfo& run);
  void step_ended(const StepInfo& info);
  void metrics_recorded(const Event& event);
  void checkpoint_saved(const CheckpointInfo& info);
  void run_ended(RunStatus status);

  /// Ends the run after the current step. The first reason counts.
  void stop(const std::string& reason) override;
  /// Makes a stop by a callback of any rank one of all ranks. Collective.
  void agree(Communicator& control);
  /// Why a callback has stopped the run; empty = none has.
  const std::string& reason() const { return reason_; }

  Json state() const;
  /// Whether `states` are those of the same callbacks.
  bool has_state_of(const Json& states) const;
  /// Throws dsv3::Error (ExitCode::checkpoint) if `state` is not of these callbacks.
  void load_state(const Json& state);

 private:
  std::vector<std::shared_ptr<Callback>> callbacks_;
  std::vector<std::string> names_;
  std::string reason_;
};

}  // namespace dsv3
