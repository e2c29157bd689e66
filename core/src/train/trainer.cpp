#include "train/trainer.h"

#include <array>
#include <cmath>
#include <csignal>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/support/sha256.h>

#include "call/checked.h"
#include "eval/validation.h"
#include "machine/machine.h"
#include "support/host.h"

namespace dsv3 {
namespace {

constexpr std::array kSignals{SIGTERM, SIGUSR2, SIGINT};
/// 0 = continue; otherwise the exit code for a stop (preempted or interrupted).
volatile std::sig_atomic_t requested_code = 0;

extern "C" void on_signal(int signal) {
  const int code = int(signal == SIGINT ? ExitCode::interrupted : ExitCode::preempted);
  if (signal == SIGINT && requested_code == code) _exit(code);
  requested_code = code;
}

/// While this object exists, SIGTERM and SIGUSR2 request preemption, and SIGINT requests an
/// interrupt. The training loop checks for requests after each step. A second SIGINT ends the
/// process immediately.
class SignalGuard {
 public:
  SignalGuard() {
    requested_code = 0;
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous_[i]);
  }
  ~SignalGuard() {
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_[i], nullptr);
  }

 private:
  std::array<struct sigaction, kSignals.size()> previous_;
};

/// Converts a float64 tensor on the host to a vector.
std::vector<double> numbers_of(const at::Tensor& host) {
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

/// `values` contains the total, main and MTP losses, the gradient norm and the recorded metrics,
/// whose names are `names`.
StepResult result_of(int64_t step, const std::vector<double>& values,
                     const std::vector<std::string>& names) {
  StepResult result{.step = step,
                    .loss = values[0],
                    .main_loss = values[1],
                    .mtp_loss = values[2],
                    .grad_norm = values[3],
                    .metrics = {}};
  for (size_t i = 0; i < names.size(); ++i) result.metrics.emplace_back(names[i], values[4 + i]);
  return result;
}

}  // namespace

PendingStep::PendingStep(int64_t number, const at::Tensor& device_values,
                         std::vector<std::string> metric_names, std::vector<Batch> step_batches,
                         LossScale loss_scale)
    : step(number),
      names(std::move(metric_names)),
      batches(std::move(step_batches)),
      scale(std::move(loss_scale)),
      values_(at::empty(device_values.sizes(),
                        at::TensorOptions().dtype(at::kDouble).pinned_memory(true))),
      copied_(device_values.device().type()) {
  values_.copy_(device_values, /*non_blocking=*/true);
  const c10::impl::VirtualGuardImpl guard(device_values.device().type());
  copied_.record(guard.getStream(device_values.device()));
}

std::vector<double> PendingStep::read() const {
  copied_.synchronize();
  return numbers_of(values_);
}

Trainer::Trainer(Experiment experiment, Plugins& plugins, RunFolder& folder, bool quiet)
    : experiment_(std::move(experiment)),
      plugins_(plugins),
      folder_(folder),
      device_(device_of(experiment_.train)),
      checkpoints_(folder.checkpoints(), experiment_.checkpoint.keep_best),
      metrics_(folder.metrics()),
      progress_(quiet) {
  choose_determinism(experiment_.train, device_);
  at::set_num_threads(int(experiment_.train.threads.value()));
  use_reference_ops(experiment_.train.ops == "reference");
  total_steps_ = total_steps(experiment_);
  micro_batch_ = micro_batch_of(experiment_.train, world_->size());
  accumulate_ = experiment_.train.batch / (micro_batch_ * world_->size());

  if (!experiment_.tokenizer.plugin.empty())
    tokenizer_ = make<Tokenizer>(plugins_, experiment_.tokenizer, TokenizerContext{});
  model_ = std::make_unique<Model>(experiment_, vocab_of(experiment_, tokenizer_.get()),
                                   factory_of(experiment_, plugins_), device_);
  figures_ = figures(*model_, experiment_);
  optimizers_ = std::make_unique<OptimizerSet>(experiment_, plugins_, model_->store());
  schedule_ = make<Schedule>(plugins_, experiment_.schedule);
  strategy_ = make<Strategy>(
      plugins_, experiment_.strategy,
      StrategyContext{world_, device_, compute_dtype(experiment_.train), Metrics(sink_)});
  model_->adopt(*strategy_, uint64_t(experiment_.train.seed),
                [this](const Parameter& parameter) { return optimizers_->group_of(parameter); });
  call(*strategy_, "ready", &Strategy::ready, optimizers_->specs());
  optimizers_->bind(*strategy_);
  init_hash_ = hash_parameters();

  loader_ = make_loader(experiment_, plugins_, *model_, Split::train, micro_batch_, tokenizer_);
  validation_ =
      make_loader(experiment_, plugins_, *model_, Split::validation, micro_batch_, tokenizer_);
  validation_start_ = validation_->state();
}

std::string Trainer::hash_parameters() {
  Sha256 digest;
  for (const OwnedTensor& owned : checked::owned(*strategy_)) {
    const at::Tensor host = owned.value.cpu().contiguous();
    digest.update(owned.range.name).update(host.const_data_ptr(), host.nbytes());
  }
  return digest.hex();
}

int Trainer::run(bool resumed) {
  announce();
  start_trackers(resumed);
  const SignalGuard signals;
  current_step.number = current_step.finished = step_;
  if (step_ == 0) record(nullptr, validate());
  mark_interval();
  while (step_ < total_steps_) {
    current_step.number = step_ + 1;
    train_step();
    current_step.finished = ++step_;
    const bool last = step_ == total_steps_;
    const int stop = last ? 0 : int(requested_code);
    const bool saves = last || stop != 0 || due(experiment_.checkpoint.every);
    if (saves || is_logged(step_)) finish_step();
    std::optional<double> val_loss;
    const double trained = seconds_now();
    if (last || due(experiment_.validation.every)) val_loss = validate();
    logged_seconds_ += seconds_now() - trained;  // excludes validation from the training rates
    record(&result_, val_loss);
    const double recorded = seconds_now();
    if (due(experiment_.samples.every) || (last && experiment_.samples.every > 0)) write_samples();
    if (saves) save(val_loss);
    logged_seconds_ += seconds_now() - recorded;
    if (stop != 0) {
      log::info("stopped by a signal at step " + std::to_string(step_) + "; resume with --run_id " +
                folder_.name());
      sender_->finish(RunStatus::stopped);
      return stop;
    }
  }
  sender_->finish(RunStatus::finished);
  return 0;
}

bool Trainer::is_logged(int64_t step) const {
  return step == total_steps_ || divides(experiment_.train.log_every, step) ||
         divides(experiment_.validation.every, step);
}

void Trainer::train_step() {
  std::vector<Batch> batches(static_cast<size_t>(accumulate_));
  at::Tensor targets = at::zeros({1 + experiment_.mtp.depth}, at::kLong);
  for (Batch& batch : batches) {
    batch = loader_->next();
    hash_rows(batch);
    targets += at::tensor(count_targets(batch, experiment_.mtp.depth), at::kLong);
  }
  world_->all_reduce_sum(targets);
  const LossScale scale = scale_of(targets);

  if (is_logged(step_ + 1)) sink_->open();
  const at::Tensor sums = run_micro_batches(batches, scale);
  const at::Tensor norm = checked::grad_norm(*strategy_, device_);
  const at::Tensor values = at::cat({sums.to(at::kDouble), norm.view({1})});
  lr_factor_ = checked::number(*schedule_, "factor", &Schedule::factor, step_ + 1, total_steps_);
  if (device_.is_cpu() || experiment_.train.not_finite == "skip") {
    update_if_finite(values, batches, scale);
    const RecordedMetrics recorded = sink_->take(*world_, device_);
    const std::vector<double> numbers = numbers_of(recorded.values.cpu());
    for (size_t i = 0; i < numbers.size(); ++i)
      result_.metrics.emplace_back(recorded.names[i], numbers[i]);
  } else {
    update_on_device(values);
    RecordedMetrics recorded = sink_->take(*world_, device_);
    PendingStep pending(step_ + 1, at::cat({values, recorded.values}), std::move(recorded.names),
                        std::move(batches), scale);
    if (pending_)
      finish_step();  // waits for the previous step only, so that the GPU never runs out of work
    pending_.emplace(std::move(pending));
  }
  tokens_ += experiment_.train.batch * experiment_.train.sequence;
}

void Trainer::update_if_finite(const at::Tensor& values, std::span<const Batch> batches,
                               const LossScale& scale) {
  result_ = result_of(step_ + 1, numbers_of(values.cpu()), {});
  const bool skipped = result_.skipped = !result_.is_finite();
  std::string cause;
  if (skipped) {
    const bool stops = experiment_.train.not_finite != "skip" && world_->size() == 1;
    cause =
        find_not_finite(*model_, *strategy_, *optimizers_, batches, scale, passes(step_), stops);
  } else {
    const double clip = experiment_.train.clip;
    if (clip > 0 && result_.grad_norm > clip)
      call(*strategy_, "scale_grads", &Strategy::scale_grads,
           at::full({}, clip / (result_.grad_norm + 1e-6), values.options()));
    optimizers_->step(*strategy_, optim_step());
  }
  call(*strategy_, "end_step", &Strategy::end_step);
  end_layers_step(skipped);
  if (skipped) report_not_finite(result_, cause);
}

void Trainer::update_on_device(const at::Tensor& values) {
  const at::Tensor norm = values[3], one = at::ones_like(norm);
  const double clip = experiment_.train.clip;
  const at::Tensor factor = clip > 0 ? at::where(norm.gt(clip), clip / (norm + 1e-6), one) : one;
  // If a value is not finite, finish_step() stops the run. Until then, zero gradients keep the
  // parameters finite, so that the search for the cause can use them.
  call(*strategy_, "scale_grads", &Strategy::scale_grads,
       at::where(values.isfinite().all(), factor, at::zeros_like(norm)));
  optimizers_->step(*strategy_, optim_step());
  call(*strategy_, "end_step", &Strategy::end_step);
  end_layers_step(false);
}

void Trainer::finish_step() {
  if (!pending_) return;
  const PendingStep pending = std::move(*pending_);
  pending_.reset();
  result_ = result_of(pending.step, pending.read(), pending.names);
  if (result_.is_finite()) return;
  const std::string cause =
      find_not_finite(*model_, *strategy_, *optimizers_, pending.batches, pending.scale,
                      passes(pending.step - 1), world_->size() == 1);
  report_not_finite(result_, cause);
}

at::Tensor Trainer::run_micro_batches(std::span<const Batch> batches, const LossScale& scale) {
  // Keep sums on the device until all gradients are computed, because reading them synchronises
  // with the device.
  at::Tensor sums = at::zeros({3}, at::TensorOptions().dtype(at::kFloat).device(device_));
  const std::vector<PassContext> contexts = passes(step_);
  for (size_t m = 0; m < batches.size(); ++m) {
    call(*strategy_, "begin_microbatch", &Strategy::begin_microbatch, m + 1 == batches.size());
    const LossParts parts = model_->loss(batches[m], scale, contexts[m]);
    checked::backward(*strategy_, {parts.total});
    const at::Tensor mtp = parts.mtp.defined() ? parts.mtp : at::zeros_like(parts.main);
    sums += at::stack({parts.total.detach(), parts.main, mtp});
  }
  world_->all_reduce_sum(sums);
  return sums;
}

void Trainer::hash_rows(const Batch& batch) {
  for (int64_t row = 0; row < batch.tokens.size(0); ++row) {
    Sha256 digest;
    digest.update(data_hash_);
    for (const at::Tensor& part : {batch.tokens, batch.document_ids}) {
      if (!part.defined()) continue;
      const at::Tensor values = part[row].contiguous();
      digest.update(values.const_data_ptr(), values.nbytes());
    }
    data_hash_ = digest.hex();
  }
}

LossScale Trainer::scale_of(const at::Tensor& targets) const {
  // At least 1, so that a step without any valid target contributes 0 and not NaN.
  const auto divisor = [&](int64_t k) { return std::max(targets[k].item<double>(), 1.0); };
  LossScale scale;
  scale.main_targets = divisor(0);
  for (int64_t k = 1; k < targets.size(0); ++k) scale.mtp_targets.push_back(divisor(k));
  scale.sequences = experiment_.train.batch;
  return scale;
}

void Trainer::report_not_finite(const StepResult& result, const std::string& cause) const {
  const auto text = [](double value) { return std::isnan(value) ? "NaN" : c10::str(value); };
  std::string what = c10::str("step ", result.step, " is not finite: loss ", text(result.loss),
                              ", gradient norm ", text(result.grad_norm));
  if (!cause.empty()) what += "; " + cause;
  if (experiment_.train.not_finite == "skip") return log::warning(what + "; skipped the update");
  throw Error(what +
                  ". Saved checkpoints are intact. Lower the "
                  "learning rate, lengthen the warm-up, or set train.not_finite=skip",
              ExitCode::not_finite);
}

std::vector<PassContext> Trainer::passes(int64_t step) const {
  std::vector<PassContext> contexts;
  for (int64_t m = 0; m < accumulate_; ++m) {
    const int64_t first_row = (m * world_->size() + world_->rank()) * micro_batch_;
    contexts.push_back({.key = {.seed = uint64_t(experiment_.train.seed),
                                .step = step + 1,
                                .first_row = first_row},
                        .metrics = Metrics(sink_)});
  }
  return contexts;
}

OptimStep Trainer::optim_step() {
  return {.update = ++updates_,
          .lr_factor = lr_factor_,
          .progress = double(step_ + 1) / double(total_steps_),
          .metrics = Metrics(sink_)};
}

void Trainer::end_layers_step(bool skipped) {
  std::vector<Component*> layers;
  for (size_t i = 0; i < model_->attention().size(); ++i) {
    layers.push_back(model_->attention()[i].get());
    layers.push_back(model_->feed_forward()[i].get());
  }
  std::vector<at::Tensor> counts, defined;
  for (Component* layer : layers) {
    counts.push_back(checked::step_counts(*layer));
    if (counts.back().defined()) defined.push_back(counts.back());
  }
  at::Tensor all;  // counts of all layers, summed over ranks
  if (!defined.empty()) world_->all_reduce_sum(all = at::cat(defined));
  const double progress = double(step_ + 1) / double(total_steps_);
  int64_t offset = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    StepEnd end{{}, progress, step_ + 1, Metrics(sink_)};
    if (counts[i].defined()) {
      end.counts = all.narrow(0, offset, counts[i].size(0));
      offset += counts[i].size(0);
      counts[i].zero_();
    }
    if (!skipped) call(*layers[i], "on_step_end", &Component::on_step_end, end);
  }
  for (const auto& [width, position] : model_->positions())
    if (!skipped) position->on_step_end({{}, progress, step_ + 1, Metrics(sink_)});
}

std::optional<double> Trainer::validate() {
  validation_->load_state(validation_start_);
  // Use whole batches, so that the rows do not depend on the micro-batch size.
  const ValidationSum sum =
      dsv3::validate(*model_, *validation_, experiment_.validation.batches * accumulate_);
  if (sum.targets == 0) {
    log::warning(
        c10::str("skipping validation: the validation split is empty (validation.share is ",
                 experiment_.validation.share, ")"));
    return std::nullopt;
  }
  return sum.loss();
}

}  // namespace dsv3
