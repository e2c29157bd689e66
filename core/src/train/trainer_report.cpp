// Reports a run's start, metrics and samples.
#include <cmath>
#include <fmt/format.h>

#include <dsv3/runtime/generate.h>
#include <dsv3/sdk/log.h>

#include "machine/machine.h"
#include "support/host.h"
#include "train/trainer.h"

namespace dsv3 {

void Trainer::announce() const {
  const TrainOptions& train = experiment_.train;
  log::info(fmt::format(
      "{}: {} parameters, {} active per token ({} / {} without embeddings, head and MTP)",
      experiment_.name, format_count(figures_.total), format_count(figures_.active),
      format_count(figures_.total_without_embeddings),
      format_count(figures_.active_without_embeddings)));
  log::info(fmt::format(
      "{} steps of {} x {} tokens, micro-batch {}, {} accumulation step(s), {} on {}, {} thread(s)",
      total_steps_, train.batch, train.sequence, micro_batch_, accumulate_, train.precision,
      device_.str(), train.threads.value()));
  if (const Gpu* gpu = gpu_of(device_))
    log::info(fmt::format("{}: {}, {}, compute capability {}{}", device_.str(), gpu->name,
                          format_bytes(double(gpu->memory_bytes)), gpu->capability(),
                          peak_flops(device_) > 0 ? "" : ", peak unknown, so no MFU is reported"));
  log::info(optimizers_->plan());
  log::debug(optimizers_->plan(true));
  log::info("run folder " + folder_.path().string() +
            (step_ > 0 ? ", resuming from step " + std::to_string(step_) : ""));
}

void Trainer::start_trackers(bool resumed) {
  std::vector<NamedTracker> trackers;
  for (size_t i = 0; i < experiment_.tracker.size(); ++i) {
    const ComponentSpec& spec = experiment_.tracker[i];
    trackers.push_back({spec.plugin + "-" + std::to_string(i),
                        make<Tracker>(plugins_, spec, RunContext{folder_.path().string()})});
  }
  const RunInfo info{folder_.name(), folder_.path().string(), experiment_.name,
                     experiment_.resolved.yaml(), resumed};
  sender_ = std::make_unique<TrackerSender>(std::move(trackers), info, folder_.metrics());
}

void Trainer::record(const StepResult* result, std::optional<double> val_loss) {
  const bool logged = !result || is_logged(step_);
  const double now = seconds_now(), elapsed = now - logged_seconds_;
  Event event{.step = step_, .tokens = tokens_, .time = wall_seconds(), .metrics = {}};
  const auto add = [&event](const std::string& name, double value) {
    event.metrics.emplace_back(name, value);
  };
  ProgressLine line{.step = step_, .steps = total_steps_};
  if (result) {
    line.loss = result->main_loss;
    line.grad_norm = result->grad_norm;
    line.lr_factor = lr_factor_;
    line.tokens_per_s = double(tokens_ - logged_tokens_) / std::max(elapsed, 1e-9);
    const int64_t step_tokens = experiment_.train.batch * experiment_.train.sequence;
    line.eta_seconds =
        double((total_steps_ - step_) * step_tokens) / std::max(line.tokens_per_s, 1e-9);
    if (const double peak = peak_flops(device_); peak > 0)
      line.mfu = line.tokens_per_s * figures_.flops_per_token / peak;
    line.wait_fraction = (loader_->wait_seconds() - logged_wait_) / std::max(elapsed, 1e-9);
    line.memory_bytes = peak_memory_bytes(device_);
    if (!logged) return progress_.show(line, false);
    add("train/loss", result->main_loss);
    add("train/total_loss", result->loss);
    if (experiment_.mtp.depth > 0) add("train/mtp_loss", result->mtp_loss);
    add("train/grad_norm", result->grad_norm);
    if (result->skipped) add("train/skipped", 1);
    for (const auto& [group, lr] : optimizers_->learning_rates(lr_factor_))
      add("train/lr/" + group, lr);
    for (const auto& [name, value] : result->metrics) add(name, value);
  }
  if (val_loss) add("val/loss", *val_loss);
  if (result) {
    add("throughput/tokens_per_s", line.tokens_per_s);
    if (line.mfu > 0) add("throughput/mfu", line.mfu);
    add("data/wait_fraction", line.wait_fraction);
    add("memory/peak_bytes", double(line.memory_bytes));
  }
  if (event.metrics.empty()) return;
  if (metrics_.append(event)) sender_->notify();
  if (result) progress_.show(line, true);
  if (val_loss) log::info(fmt::format("step {}  validation loss {:.4f}", step_, *val_loss));
  mark_interval();
}

void Trainer::mark_interval() {
  logged_seconds_ = seconds_now();
  logged_wait_ = loader_->wait_seconds();
  logged_tokens_ = tokens_;
}

void Trainer::write_samples() {
  if (!tokenizer_) return;
  const SamplesOptions& samples = experiment_.samples;
  GenerateOptions options{.sampling = {.temperature = samples.temperature, .top_k = samples.top_k},
                          .tokens = samples.tokens,
                          .ids = tokenizer_->vocab_size()};
  if (tokenizer_->eos_id() >= 0) options.stop_ids.push_back(tokenizer_->eos_id());
  std::vector<Prompt> prompts;
  for (const std::string& prompt : samples.prompts) {
    const uint64_t seed =
        uint64_t(experiment_.train.seed) * 1'000'003u + uint64_t(step_) * 1'009u + prompts.size();
    std::vector<int32_t> ids = tokenizer_->encode(prompt);
    if (ids.empty()) ids.push_back(std::max(tokenizer_->eos_id(), 0));
    prompts.push_back({std::move(ids), seed});
  }
  const Generation generation = generate(*model_, prompts, options);
  std::string text;
  for (size_t i = 0; i < prompts.size(); ++i)
    text += c10::str(i ? "---\n" : "", samples.prompts[i],
                     tokenizer_->decode(generation.texts[i].ids), "\n");
  fs::make_folders(folder_.samples());
  fs::write_atomically(folder_.samples() / fmt::format("step-{:07}.txt", step_), text);
  log::info(fmt::format("sample at step {}: {}", step_, text));
}

}  // namespace dsv3
