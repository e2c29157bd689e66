#include "train/trainer.h"

#include <fmt/format.h>

#include <dsv3/runtime/quantities.h>
#include <dsv3/sdk/log.h>

#include "call/call.h"
#include "machine/machine.h"
#include "support/host.h"
#include "train/replicas.h"
#include "train/signals.h"

namespace dsv3 {
Trainer::Trainer(Training& training, bool resumed, bool quiet, bool profiled)
    : run_(training), stepper_(training) {
  if (profiled) profile_.emplace(run_);
  observers_.push_back(validation_observer(run_));
  observers_.push_back(metrics_observer(run_, resumed, quiet));
  observers_.push_back(samples_observer(run_));
  observers_.push_back(checkpoint_observer(run_));
  observers_.push_back(status_observer(run_));
}

int Trainer::run() {
  announce();
  for (const auto& observer : observers_) observer->run_started();
  running_ = true;
  return train();
}

int Trainer::train() {
  RunState& state = run_.state;
  current_step.number = current_step.finished = state.step;
  if (!state.stopped.empty()) {
    log::info("the run has ended: " + state.stopped);
    return 0;
  }
  if (state.step == 0 || !state.cut_short.empty()) {
    StepReport start{.step = state.step,
                     .last = state.step == run_.steps,
                     .recorded = state.cut_short == "samples"};
    if (start.recorded) start.val_loss = run_.restored_val_loss;
    state.cut_short.clear();
    if (const int signal = publish(start)) return signal;
  }
  while (state.step < run_.steps && state.stopped.empty()) {
    current_step.number = state.step + 1;
    const double begin = seconds_now();
    if (profile_) profile_->step_begins();
    run_.trace.begin_step(state.step + 1, state.step + 1 == run_.steps);
    stepper_.step();
    current_step.finished = ++state.step;
    StepReport report{.step = state.step, .last = state.step == run_.steps};
    report.stopping = run_.requested_stop() && !report.last;
    // Wait for the result only if something depends on it.
    const bool saves = report.last || report.stopping ||
                       Training::divides(run_.experiment.checkpoint.every, state.step);
    if (saves || run_.is_logged(state.step)) stepper_.finish();
    run_.seconds += seconds_now() - begin;
    if (profile_) profile_->step_ended(report.last || report.stopping);
    if (Training::divides(kCompareReplicas, state.step)) compare_replicas(run_);
    report.result = &stepper_.result();
    report.lr_factor = stepper_.lr_factor();
    if (const int signal = publish(report)) return signal;
  }
  return 0;
}

void Trainer::end_early(StepReport& report, const std::string& reason) {
  run_.state.stopped = reason;
  log::info(fmt::format("the run ends at step {}: {}", report.step, reason));
  if (report.last) return;
  stepper_.finish();
  report.last = true;
  notify(report);
}

int Trainer::publish(StepReport& report) {
  notify(report);
  run_.callbacks.agree(*run_.ranks.control);
  if (const std::string& reason = run_.callbacks.reason(); !reason.empty()) {
    // A validation that was cut short is repeated when the run resumes.
    if (run_.state.cut_short.empty()) report.stopping = false;
    end_early(report, reason);
  }
  return report.stopping ? run_.requested_stop() : 0;
}

void Trainer::notify(StepReport& report) {
  // If an observer fails, such as a sample, later ones may still have to save the step.
  std::exception_ptr failure;
  for (const auto& observer : observers_) {
    try {
      observer->step_ended(report);
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void Trainer::end(RunStatus status) {
  if (!std::exchange(running_, false)) return;
  stepper_.report_no_targets();
  for (const auto& observer : observers_) observer->run_ended(status);
}

void Trainer::announce() const {
  const TrainOptions& train = run_.experiment.train;
  log::info(fmt::format(
      "{}: {} parameters, {} active per token ({} / {} without embeddings, head and MTP)",
      run_.experiment.name, format_count(run_.model_figures.total),
      format_count(run_.model_figures.active),
      format_count(run_.model_figures.total_without_embeddings),
      format_count(run_.model_figures.active_without_embeddings)));
  log::info(fmt::format(
      "{} steps of {} x {} tokens, micro-batch {}, {} accumulation step(s), {} on {}, {} thread(s)",
      run_.steps, train.batch, train.sequence, run_.micro_batch, run_.accumulate, train.precision,
      run_.device.str(), train.threads.value()));
  if (const Gpu* gpu = gpu_of(run_.device))
    log::info(
        fmt::format("{}: {}, {}, compute capability {}{}", run_.device.str(), gpu->name,
                    format_bytes(double(gpu->memory_bytes)), gpu->capability(),
                    peak_flops(run_.device) > 0 ? "" : ", peak unknown, so no MFU is reported"));
  log::info("parameter groups:\n" + run_.optimizers->plan());
  log::debug("parameter groups and parameters:\n" + run_.optimizers->plan(true));
  log::info("run folder " + run_.folder.path().string() +
            (run_.state.step > 0 ? ", resuming from step " + std::to_string(run_.state.step) : ""));
}

}  // namespace dsv3
