// Runs one optimizer step: forward and backward passes, update, and the result.
#include "train/step.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dsv3/sdk/log.h>
#include <dsv3/support/sha256.h>

#include "call/checked.h"
#include "ranks/exchange.h"

namespace dsv3 {
namespace {

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

constexpr size_t kDigestSize = 64;  // of SHA-256, in hex

/// The digests of a micro-batch's rows, in order.
std::string digests_of_rows(const Batch& batch) {
  std::string digests;
  for (int64_t row = 0; row < batch.tokens.size(0); ++row) {
    Sha256 digest;
    for (const at::Tensor& part : {batch.tokens, batch.document_ids}) {
      if (!part.defined()) continue;
      const at::Tensor values = part[row].contiguous();
      digest.update(values.const_data_ptr(), values.nbytes());
    }
    digests += digest.hex();
  }
  return digests;
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

std::vector<Batch> Stepper::next_batches(at::Tensor& targets) {
  const Trace::Scope span(run_.trace, Trace::Stage::train, "load");
  std::vector<Batch> batches(static_cast<size_t>(run_.accumulate));
  targets = at::zeros({1 + run_.experiment.mtp.depth}, at::kLong);
  std::string digests;
  for (Batch& batch : batches) {
    batch = run_.loader->next();
    trace_loading();
    digests += digests_of_rows(batch);
    targets += at::tensor(count_targets(batch, run_.experiment.mtp.depth), at::kLong);
  }
  hash_rows(gather_texts(*run_.ranks.control, digests));
  run_.ranks.control->all_reduce_sum(targets);
  return batches;
}

void Stepper::trace_loading() {
  const LoadTimes& times = run_.loader->times();
  const std::string load = run_.trace.add(Trace::Stage::data, "load", times.start, times.end);
  if (times.tokenize > 0)
    run_.trace.add(Trace::Stage::data, "tokenize", times.start, times.start + times.tokenize, load);
}

void Stepper::step() {
  const Trace::Scope span(run_.trace, Trace::Stage::train, "step");
  at::Tensor targets;  // number of valid targets, for the main loss and for each MTP depth
  std::vector<Batch> batches = next_batches(targets);
  if (targets[0].item<int64_t>() == 0) warn_about_no_targets();
  const LossScale scale = scale_of(targets);
  if (run_.is_logged(run_.state.step + 1)) run_.sink->open();
  const at::Tensor sums = run_micro_batches(batches, scale);
  const at::Tensor norm = reduce();
  const at::Tensor values = at::cat({sums.to(at::kDouble), norm.view({1})});
  lr_factor_ =
      checked::number(*run_.schedule, "factor", &Schedule::factor, run_.state.step + 1, run_.steps);
  if (run_.device.is_cpu() || run_.experiment.train.not_finite == "skip") {
    update_if_finite(values, batches, scale);
    const RecordedMetrics recorded = take_metrics(*run_.sink, run_.ranks, run_.device);
    const std::vector<double> numbers = numbers_of(recorded.values.cpu());
    for (size_t i = 0; i < numbers.size(); ++i)
      result_.metrics.emplace_back(recorded.names[i], numbers[i]);
  } else {
    update_on_device(values);
    RecordedMetrics recorded = take_metrics(*run_.sink, run_.ranks, run_.device);
    PendingStep pending(run_.state.step + 1, at::cat({values, recorded.values}),
                        std::move(recorded.names), std::move(batches), scale);
    if (pending_)
      finish();  // waits for the previous step only, so that the GPU never runs out of work
    pending_.emplace(std::move(pending));
  }
  run_.state.tokens += run_.tokens_per_step();
}

at::Tensor Stepper::reduce() {
  const Trace::Scope span(run_.trace, Trace::Stage::train, "reduce");
  return checked::grad_norm(*run_.strategy, run_.device);
}

void Stepper::update_if_finite(const at::Tensor& values, std::span<const Batch> batches,
                               const LossScale& scale) {
  result_ = result_of(run_.state.step + 1, numbers_of(values.cpu()), {});
  const bool skipped = result_.skipped = !result_.is_finite();
  std::string cause;
  if (skipped) {
    const bool stops = run_.experiment.train.not_finite != "skip" && run_.ranks.size() == 1;
    cause = find_not_finite(*run_.ranks.control, *run_.model, *run_.strategy, *run_.optimizers,
                            batches, scale, passes(result_.step), stops, /*updated=*/false);
  } else {
    const double clip = run_.experiment.train.clip;
    if (clip > 0 && result_.grad_norm > clip)
      call(*run_.strategy, "scale_grads", &Strategy::scale_grads,
           at::full({}, clip / (result_.grad_norm + 1e-6), values.options()));
    update_parameters();
  }
  call(*run_.strategy, "end_step", &Strategy::end_step);
  end_step(skipped);
  int64_t& skipped_in_row = run_.state.skipped_in_row;
  skipped_in_row = skipped ? skipped_in_row + 1 : 0;
  if (skipped) report_not_finite(result_, cause);
}

void Stepper::update_on_device(const at::Tensor& values) {
  const at::Tensor norm = values[3], one = at::ones_like(norm);
  const double clip = run_.experiment.train.clip;
  const at::Tensor factor = clip > 0 ? at::where(norm.gt(clip), clip / (norm + 1e-6), one) : one;
  // If a value is not finite, finish() stops the run. Until then, zero gradients keep the
  // parameters finite, so that the search for the cause can use them.
  call(*run_.strategy, "scale_grads", &Strategy::scale_grads,
       at::where(values.isfinite().all(), factor, at::zeros_like(norm)));
  update_parameters();
  call(*run_.strategy, "end_step", &Strategy::end_step);
  end_step(false);
}

void Stepper::finish() {
  if (!pending_) return;
  const PendingStep pending = std::move(*pending_);
  pending_.reset();
  result_ = result_of(pending.step, pending.read(), pending.names);
  if (result_.is_finite()) return;
  const std::string cause = find_not_finite(
      *run_.ranks.control, *run_.model, *run_.strategy, *run_.optimizers, pending.batches,
      pending.scale, passes(pending.step), run_.ranks.size() == 1, /*updated=*/true);
  report_not_finite(result_, cause);
}

at::Tensor Stepper::run_micro_batches(std::span<const Batch> batches, const LossScale& scale) {
  // Keep sums on the device until all gradients are computed, because reading them synchronises
  // with the device.
  at::Tensor sums = at::zeros({3}, at::TensorOptions().dtype(at::kFloat).device(run_.device));
  const std::vector<PassContext> contexts = passes(run_.state.step + 1);
  for (size_t m = 0; m < batches.size(); ++m) {
    call(*run_.strategy, "begin_microbatch", &Strategy::begin_microbatch, m + 1 == batches.size());
    const LossParts parts = forward(batches[m], scale, contexts[m]);
    backward(parts);
    const at::Tensor mtp = parts.mtp.defined() ? parts.mtp : at::zeros_like(parts.main);
    sums += at::stack({parts.total.detach(), parts.main, mtp});
  }
  run_.ranks.world->all_reduce_sum(sums);
  return sums;
}

LossParts Stepper::forward(const Batch& batch, const LossScale& scale, const PassContext& context) {
  const Trace::Scope span(run_.trace, Trace::Stage::train, "forward");
  return run_.model->loss(batch, scale, context);
}

void Stepper::backward(const LossParts& parts) {
  const Trace::Scope span(run_.trace, Trace::Stage::train, "backward");
  checked::backward(*run_.strategy, {parts.total});
}

void Stepper::hash_rows(const std::vector<std::string>& digests) {
  const size_t size = digests.front().size() / size_t(run_.accumulate);  // of a micro-batch
  for (size_t begin = 0; begin < digests.front().size(); begin += size)
    for (const std::string& of_rank : digests)
      for (size_t row = begin; row < begin + size; row += kDigestSize)
        run_.state.data_hash = sha256(run_.state.data_hash + of_rank.substr(row, kDigestSize));
}

LossScale Stepper::scale_of(const at::Tensor& targets) const {
  // At least 1, so that a step without any valid target contributes 0 and not NaN.
  const auto divisor = [&](int64_t k) { return std::max(targets[k].item<double>(), 1.0); };
  LossScale scale;
  scale.main_targets = divisor(0);
  for (int64_t k = 1; k < targets.size(0); ++k) scale.mtp_targets.push_back(divisor(k));
  scale.sequences = run_.experiment.train.batch;
  return scale;
}

void Stepper::warn_about_no_targets() {
  if (++steps_without_targets_ == 1)
    log::warning(c10::str(
        "step ", run_.state.step + 1,
        " has no valid target, so nothing is learned from it; a target is the next token of the "
        "same document, so check that documents have more than one token. Further steps are "
        "counted"));
}

void Stepper::report_no_targets() const {
  if (steps_without_targets_ > 0)
    log::warning(c10::str(steps_without_targets_, " step(s) had no valid target"));
}

void Stepper::report_not_finite(const StepResult& result, const std::string& cause) const {
  const auto text = [](double value) { return std::isnan(value) ? "NaN" : c10::str(value); };
  std::string what = c10::str("step ", result.step, " is not finite: loss ", text(result.loss),
                              ", gradient norm ", text(result.grad_norm));
  if (!cause.empty()) what += "; " + cause;
  const TrainOptions& train = run_.experiment.train;
  if (train.not_finite == "skip" && run_.state.skipped_in_row < train.max_skipped)
    return log::warning(what + "; skipped the update");
  if (train.not_finite == "skip")
    throw Error(c10::str(what, ". ", run_.state.skipped_in_row,
                         " updates in a row were skipped (train.max_skipped), so the model does "
                         "not learn. Saved checkpoints are intact. Lower the learning rate, or "
                         "branch from an earlier step"),
                ExitCode::not_finite);
  throw Error(what +
                  ". Saved checkpoints are intact. Lower the "
                  "learning rate, lengthen the warm-up, or set train.not_finite=skip",
              ExitCode::not_finite);
}

std::vector<PassContext> Stepper::passes(int64_t step) const {
  std::vector<PassContext> contexts;
  for (int64_t m = 0; m < run_.accumulate; ++m) {
    const int64_t first_row = (m * run_.ranks.size() + run_.ranks.world->rank()) * run_.micro_batch;
    contexts.push_back({.key = {.seed = uint64_t(run_.experiment.train.seed),
                                .step = step,
                                .first_row = first_row},
                        .metrics = metrics_});
  }
  return contexts;
}

void Stepper::update_parameters() {
  const Trace::Scope span(run_.trace, Trace::Stage::train, "optimizer");
  const OptimStep step{.update = ++run_.state.updates,
                       .lr_factor = lr_factor_,
                       .progress = progress(),
                       .metrics = metrics_};
  const bool watched = metrics_.wanted();
  run_.optimizers->step(
      *run_.strategy, step,
      watched ? run_.callbacks.update_observer(metrics_) : OptimizerSet::UpdateObserver());
}

void Stepper::end_step(bool skipped) {
  const int64_t number = run_.state.step + 1;
  std::vector<Component*> layers;
  for (size_t i = 0; i < run_.model->attention().size(); ++i) {
    layers.push_back(run_.model->attention()[i].get());
    layers.push_back(run_.model->feed_forward()[i].get());
  }
  std::vector<at::Tensor> counts, defined;
  for (Component* layer : layers) {
    counts.push_back(checked::step_counts(*layer));
    if (counts.back().defined()) defined.push_back(counts.back());
  }
  at::Tensor all;  // counts of all layers, summed over ranks
  if (!defined.empty()) run_.ranks.world->all_reduce_sum(all = at::cat(defined));
  // All ranks have the same counts, so only one of them records what layers compute from these.
  const Metrics once = run_.ranks.is_first() ? metrics_ : Metrics();
  int64_t offset = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    StepEnd end{{}, progress(), number, once};
    if (counts[i].defined()) {
      end.counts = all.narrow(0, offset, counts[i].size(0));
      offset += counts[i].size(0);
      counts[i].zero_();
    }
    if (!skipped) call(*layers[i], "on_step_end", &Component::on_step_end, end);
  }
  for (const auto& [width, position] : run_.model->positions())
    if (!skipped) position->on_step_end({{}, progress(), number, once});
  run_.callbacks.step_ended(
      {number, run_.steps, run_.state.tokens + run_.tokens_per_step(), metrics_});
}

}  // namespace dsv3
