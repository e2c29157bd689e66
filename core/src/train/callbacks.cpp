#include "train/callbacks.h"

#include <cmath>

#include "call/call.h"
#include "ranks/exchange.h"

namespace dsv3 {
namespace {

/// Returns the callback's state. Throws dsv3::Error if JSON cannot represent it.
Json finite_state(const Callback& component) {
  const Json state = component.state(), numbers = state.flatten();
  for (const auto& [path, value] : numbers.items())
    if (value.is_number_float() && !std::isfinite(value.get<double>()))
      throw Error(
          "returned a number at '" + path + "' that is not finite; checkpoints cannot store it",
          ExitCode::plugin);
  return state;
}

}  // namespace

CallbackSet::CallbackSet(const Experiment& experiment, Plugins& plugins) {
  const auto specs = experiment.others.find(Kind::callback);
  if (specs == experiment.others.end()) return;
  for (const ComponentSpec& spec : specs->second) {
    callbacks_.push_back(make<Callback>(plugins, spec));
    names_.push_back(spec.plugin);
  }
}

std::function<void(std::span<const ParameterUpdate>)> CallbackSet::update_observer(
    Metrics metrics) {
  std::vector<Callback*> watching;
  for (const std::shared_ptr<Callback>& callback : callbacks_)
    if (call(*callback, "watches_updates", &Callback::watches_updates))
      watching.push_back(callback.get());
  if (watching.empty()) return {};
  return [watching, metrics](std::span<const ParameterUpdate> updates) {
    // With copies on several ranks, each of them would report the same update.
    std::vector<ParameterUpdate> primary;
    for (const ParameterUpdate& update : updates)
      if (update.range.primary) primary.push_back(update);
    for (Callback* callback : watching)
      call(*callback, "on_update", &Callback::on_update, std::span<const ParameterUpdate>(primary),
           metrics);
  };
}

void CallbackSet::run_started(const RunInfo& run) {
  for (const auto& callback : callbacks_)
    call(*callback, "on_run_start", &Callback::on_run_start, run);
}

void CallbackSet::step_ended(const StepInfo& info) {
  for (const auto& callback : callbacks_)
    call(*callback, "on_step_end", &Callback::on_step_end, info, *this);
}

void CallbackSet::metrics_recorded(const Event& event) {
  for (const auto& callback : callbacks_)
    call(*callback, "on_metrics", &Callback::on_metrics, event, *this);
}

void CallbackSet::checkpoint_saved(const CheckpointInfo& info) {
  for (const auto& callback : callbacks_)
    call(*callback, "on_checkpoint_saved", &Callback::on_checkpoint_saved, info);
}

void CallbackSet::run_ended(RunStatus status) {
  for (const auto& callback : callbacks_)
    call(*callback, "on_run_end", &Callback::on_run_end, status);
}

void CallbackSet::stop(const std::string& reason) {
  if (reason_.empty()) reason_ = reason.empty() ? "stopped by a callback" : reason;
}

void CallbackSet::agree(Communicator& control) {
  if (!is_true_on_any(control, !reason_.empty())) return;
  for (const std::string& reason : gather_texts(control, reason_))
    if (!reason.empty()) {
      reason_ = reason;
      return;
    }
}

Json CallbackSet::state() const {
  Json states = Json::array();
  for (size_t i = 0; i < callbacks_.size(); ++i)
    states.push_back(
        {{"plugin", names_[i]}, {"state", call(*callbacks_[i], "state", &finite_state)}});
  return states;
}

bool CallbackSet::has_state_of(const Json& states) const {
  return states.size() == names_.size() &&
         std::ranges::equal(states, names_, [](const Json& entry, const std::string& name) {
           return entry.at("plugin") == name;
         });
}

void CallbackSet::load_state(const Json& states) {
  if (!has_state_of(states))
    throw Error("the checkpoint is of a run with other callbacks: " + states.dump(),
                ExitCode::checkpoint);
  for (size_t i = 0; i < callbacks_.size(); ++i)
    call(*callbacks_[i], "load_state", &Callback::load_state, states[i].at("state"));
}

}  // namespace dsv3
