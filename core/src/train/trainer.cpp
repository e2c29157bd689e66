#include "train/trainer.h"

#include <cmath>

#include <ATen/Parallel.h>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/support/sha256.h>

#include "barrier/call.h"
#include "train/clock.h"
#include "train/machine.h"
#include "train/not_finite.h"
#include "train/signals.h"
#include "train/validation.h"

namespace dsv3 {
namespace {

int64_t vocab_of(const Experiment& experiment, const Tokenizer* tokenizer) {
  if (experiment.model.vocab > 0) {
    if (tokenizer && tokenizer->vocab_size() > experiment.model.vocab)
      throw Error("model.vocab is " + std::to_string(experiment.model.vocab) +
                      ", but the tokenizer has " + std::to_string(tokenizer->vocab_size()) +
                      " ids: raise model.vocab or set it to auto",
                  ExitCode::usage);
    return experiment.model.vocab;
  }
  if (!tokenizer)
    throw Error("model.vocab is auto, but data names no tokenizer: give model.vocab a number",
                ExitCode::usage);
  return tokenizer->vocab_size();
}

}  // namespace

Trainer::Trainer(Experiment experiment, Plugins& plugins, RunFolder& folder, bool quiet)
    : experiment_(std::move(experiment)),
      plugins_(plugins),
      folder_(folder),
      device_(device_of(experiment_.train)),
      checkpoints_(folder.checkpoints(), experiment_.checkpoint.keep_best),
      metrics_(folder.metrics()),
      progress_(quiet) {
  at::set_num_threads(static_cast<int>(experiment_.train.threads));
  use_reference_ops(experiment_.train.ops == "reference");
  total_steps_ = total_steps(experiment_);
  micro_batch_ = micro_batch_of(experiment_.train, world_->size());
  accumulate_ = experiment_.train.batch / (micro_batch_ * world_->size());

  if (!experiment_.tokenizer.plugin.empty())
    tokenizer_ = make<Tokenizer>(plugins_, experiment_.tokenizer, TokenizerContext{});
  model_ = std::make_unique<Model>(experiment_, vocab_of(experiment_, tokenizer_.get()), plugins_,
                                   device_);
  figures_ = figures(*model_, experiment_);
  optimizers_ = std::make_unique<OptimizerSet>(experiment_, plugins_, model_->store());
  schedule_ = make<Schedule>(plugins_, experiment_.schedule);
  strategy_ = make<Strategy>(plugins_, experiment_.strategy,
                             StrategyContext{world_, device_, compute_dtype(experiment_.train)});
  model_->adopt(*strategy_, static_cast<uint64_t>(experiment_.train.seed),
                [this](const Parameter& parameter) { return optimizers_->group_of(parameter); });
  strategy_->ready(optimizers_->specs());
  optimizers_->bind(*strategy_);
  init_hash_ = hash_parameters();

  loader_ = make_loader(experiment_, plugins_, *model_, Split::train, micro_batch_, tokenizer_);
  validation_ =
      make_loader(experiment_, plugins_, *model_, Split::validation, micro_batch_, tokenizer_);
  validation_start_ = validation_->state();
}

Trainer::~Trainer() = default;

std::string Trainer::hash_parameters() {
  Sha256 digest;
  for (const OwnedTensor& owned : strategy_->owned()) {
    const at::Tensor host = owned.value.cpu().contiguous();
    digest.update(owned.range.name).update(host.const_data_ptr(), host.nbytes());
  }
  return digest.hex();
}

int Trainer::run(bool resumed) {
  announce();
  start_trackers(resumed);
  SignalGuard signals;
  const barrier::StepNumbers numbers;
  numbers.end(step_);
  if (step_ == 0) record(nullptr, validate());
  mark_interval();
  while (step_ < total_steps_) {
    numbers.begin(step_ + 1);
    const StepResult result = train_step();
    numbers.end(++step_);
    const bool last = step_ == total_steps_;
    const int stop = last ? 0 : SignalGuard::requested();
    std::optional<double> val_loss;
    const double stepped = seconds_now();
    if (last || due(experiment_.validation.every)) val_loss = validate();
    since_seconds_ += seconds_now() - stepped;  // rates are of training alone
    record(&result, val_loss);
    const double recorded = seconds_now();
    if (due(experiment_.samples.every) || (last && experiment_.samples.every > 0)) write_samples();
    if (last || stop != 0 || due(experiment_.checkpoint.every)) save(val_loss);
    since_seconds_ += seconds_now() - recorded;
    if (stop != 0) {
      log::info("stopped by a signal at step " + std::to_string(step_) + "; go on with --run_id " +
                folder_.name());
      sender_->finish(RunStatus::stopped);
      return stop;
    }
  }
  sender_->finish(RunStatus::finished);
  return 0;
}

StepResult Trainer::train_step() {
  std::vector<Batch> batches(static_cast<size_t>(accumulate_));
  at::Tensor targets = at::zeros({1 + experiment_.mtp.depth}, at::kLong);
  for (Batch& batch : batches) {
    batch = loader_->next();
    hash_rows(batch);
    targets += at::tensor(count_targets(batch, experiment_.mtp.depth), at::kLong);
  }
  world_->all_reduce_sum(targets);
  const LossScale scale = scale_of(targets);

  at::Tensor sums = run_micro_batches(batches, scale);
  StepResult result;
  result.grad_norm = strategy_->grad_norm();
  sums = sums.cpu();
  result.loss = sums[0].item<double>();
  result.main_loss = sums[1].item<double>();
  result.mtp_loss = sums[2].item<double>();
  result.skipped = !std::isfinite(result.grad_norm) || !std::isfinite(result.loss);
  lr_factor_ = schedule_->factor(step_ + 1, total_steps_);
  std::string cause;
  if (result.skipped) {
    const bool stops = experiment_.train.not_finite != "skip" && world_->size() == 1;
    cause = find_not_finite(*model_, *strategy_, *optimizers_, batches, scale, stops);
  } else {
    const double clip = experiment_.train.clip;
    if (clip > 0 && result.grad_norm > clip)
      strategy_->scale_grads(clip / (result.grad_norm + 1e-6));
    optimizers_->step(*strategy_, ++updates_, lr_factor_);
  }
  strategy_->end_step();
  end_feed_forward_step(result.skipped);
  tokens_ += experiment_.train.batch * experiment_.train.sequence;
  if (result.skipped) refuse_or_report(result, cause);
  return result;
}

at::Tensor Trainer::run_micro_batches(std::span<const Batch> batches, const LossScale& scale) {
  // Sums stay on the device until gradients are there: reading them is the only wait for it.
  at::Tensor sums = at::zeros({3}, at::TensorOptions().dtype(at::kFloat).device(device_));
  for (size_t m = 0; m < batches.size(); ++m) {
    strategy_->begin_microbatch(m + 1 == batches.size());
    const LossParts parts = model_->loss(batches[m], scale);
    strategy_->backward({parts.total});
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
  // A step without any valid target contributes 0, never NaN.
  const auto at_least_one = [](int64_t count) {
    return static_cast<double>(std::max<int64_t>(count, 1));
  };
  LossScale scale;
  scale.main_targets = at_least_one(targets[0].item<int64_t>());
  for (int64_t k = 1; k < targets.size(0); ++k)
    scale.mtp_targets.push_back(at_least_one(targets[k].item<int64_t>()));
  scale.sequences = experiment_.train.batch;
  return scale;
}

void Trainer::refuse_or_report(const StepResult& result, const std::string& cause) const {
  const auto shown = [](double value) { return std::isnan(value) ? "NaN" : c10::str(value); };
  std::string what = "step " + std::to_string(step_ + 1) + ": loss " + shown(result.loss) +
                     ", gradient norm " + shown(result.grad_norm) + ", which is not finite";
  if (!cause.empty()) what += "; " + cause;
  if (experiment_.train.not_finite == "skip") {
    log::warning(what + "; the update was skipped");
    return;
  }
  throw Error(what +
                  ". Nothing was updated; the newest checkpoint is unharmed. Lower the learning "
                  "rate, lengthen the "
                  "warm-up, or set train.not_finite=skip",
              ExitCode::not_finite);
}

void Trainer::end_feed_forward_step(bool skipped) {
  std::vector<at::Tensor> counts;
  for (const auto& layer : model_->feed_forward())
    if (at::Tensor count = layer->step_counts(); count.defined()) counts.push_back(count);
  if (counts.empty()) return;
  at::Tensor all = at::cat(counts);
  world_->all_reduce_sum(all);
  load_max_.clear();
  int64_t offset = 0;
  const auto& layers = model_->feed_forward();
  for (size_t i = 0; i < layers.size(); ++i) {
    at::Tensor count = layers[i]->step_counts();
    if (!count.defined()) continue;
    const at::Tensor sum = all.narrow(0, offset, count.size(0));
    offset += count.size(0);
    count.zero_();
    load_max_.emplace_back("moe/load_max/" + std::to_string(i), sum);
    if (!skipped)
      layers[i]->on_step_end(
          {sum, static_cast<double>(step_ + 1) / static_cast<double>(total_steps_)});
  }
}

std::optional<double> Trainer::validate() {
  validation_->load_state(validation_start_);
  // Whole batches, so that the rows do not depend on the micro-batch.
  const ValidationSum sum =
      dsv3::validate(*model_, *validation_, experiment_.validation.batches * accumulate_);
  if (sum.targets == 0) {
    log::warning(c10::str("no validation: the data holds out no document (validation.share is ",
                          experiment_.validation.share, ")"));
    return std::nullopt;
  }
  return sum.loss();
}

}  // namespace dsv3
