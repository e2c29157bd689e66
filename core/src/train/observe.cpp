// Observers that validate, sample, save and update status.json.
#include <fmt/format.h>

#include <dsv3/runtime/generate.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/log.h>

#include "eval/validation.h"
#include "ranks/exchange.h"
#include "support/host.h"
#include "train/observer.h"
#include "train/signals.h"

namespace dsv3 {
namespace {

class Validation final : public Observer {
 public:
  explicit Validation(Training& training)
      : run_(training),
        loader_(make_loader(run_.experiment, run_.plugins, *run_.model, Split::validation,
                            run_.micro_batch, run_.tokenizer, run_.ranks.control->rank(),
                            run_.ranks.size())),
        start_(loader_->state()) {
    const std::string hash = hash_of_documents(start_);
    require_equal(*run_.ranks.control, {{"validation documents", hash}});
    const std::string before = std::exchange(run_.state.validation_hash, hash);
    if (!before.empty() && before != hash)
      log::warning(c10::str("the validation documents have changed since step ", run_.state.step,
                            ", so earlier and later validation losses are not comparable"));
  }

  void step_ended(StepReport& report) override {
    const ValidationOptions& options = run_.experiment.validation;
    if (report.val_loss || report.recorded) return;
    if (report.step > 0 && !report.last && !Training::divides(options.every, report.step)) return;
    Trace::Scope span(run_.trace, Trace::Stage::eval, "validate");
    loader_->load_state(start_);
    const EvaluationWeights weights = run_.evaluation_weights();
    // Use whole batches, so that the rows do not depend on the micro-batch size.
    ValidationSum sum = validate(*run_.model, *loader_, options.batches * run_.accumulate,
                                 [this](const Batch&) { return !run_.requested_stop(); });
    sum_over_ranks(sum);
    if (run_.requested_stop()) {
      report.stopping = true;
      run_.state.cut_short = "validation";
    } else if (sum.targets > 0) {
      report.val_loss = sum.loss();
      span.set("val/loss", fmt::format("{}", sum.loss()));
    } else {
      log::warning(
          c10::str("skipping validation: the validation split is empty (validation.share is ",
                   options.share, ")"));
    }
  }

 private:
  void sum_over_ranks(ValidationSum& sum) const {
    at::Tensor nats = at::full({1}, sum.nats, at::kDouble);
    at::Tensor targets = at::full({1}, sum.targets, at::kLong);
    run_.ranks.control->all_reduce_sum(nats);
    run_.ranks.control->all_reduce_sum(targets);
    sum = {nats.item<double>(), targets.item<int64_t>()};
  }

  Training& run_;
  std::unique_ptr<Loader> loader_;
  Json start_;
};

class Samples final : public Observer {
 public:
  explicit Samples(Training& training) : run_(training) {}

  void step_ended(StepReport& report) override {
    const int64_t every = run_.experiment.samples.every;
    if (report.step == written_ || every == 0 || !run_.tokenizer) return;
    if (!report.last && !Training::divides(every, report.step)) return;
    if (!run_.state.cut_short.empty()) return;
    written_ = report.step;
    const Trace::Scope span(run_.trace, Trace::Stage::eval, "sample");
    const std::vector<record::Sample> samples = generate_samples();
    if (run_.requested_stop()) {
      report.stopping = true;
      run_.state.cut_short = "samples";
    } else if (run_.ranks.is_first()) {
      write(samples);
    }
  }

 private:
  std::vector<record::Sample> generate_samples() const {
    const SamplesOptions& samples = run_.experiment.samples;
    const Tokenizer& tokenizer = *run_.tokenizer;
    GenerateOptions options{
        .sampling = {.temperature = samples.temperature, .top_k = samples.top_k},
        .tokens = samples.tokens,
        .ids = tokenizer.vocab_size(),
        .on_token = [this](size_t, int32_t) { return !run_.requested_stop(); },
        .on_logits = [this](at::Tensor& logits) { run_.ranks.control->broadcast(logits, 0); }};
    if (tokenizer.eos_id() >= 0) options.stop_ids.push_back(tokenizer.eos_id());
    std::vector<Prompt> prompts;
    for (const std::string& prompt : samples.prompts) {
      const uint64_t seed = uint64_t(run_.experiment.train.seed) * 1'000'003u +
                            uint64_t(run_.state.step) * 1'009u + prompts.size();
      std::vector<int32_t> ids = tokenizer.encode(prompt);
      if (ids.empty()) ids.push_back(std::max(tokenizer.eos_id(), 0));
      prompts.push_back({std::move(ids), seed});
    }
    const EvaluationWeights weights = run_.evaluation_weights();
    const Generation generation = generate(*run_.model, prompts, options);
    std::vector<record::Sample> texts;
    for (size_t i = 0; i < prompts.size(); ++i)
      texts.push_back({without_secrets(samples.prompts[i]),
                       without_secrets(tokenizer.decode(generation.texts[i].ids))});
    return texts;
  }

  void write(const std::vector<record::Sample>& samples) const {
    std::string text;
    for (const record::Sample& sample : samples)
      text += (text.empty() ? "" : "---\n") + sample.prompt + sample.text + "\n";
    const std::filesystem::path file =
        run_.folder.samples() / fmt::format("step-{:07}.txt", run_.state.step);
    fs::make_folders(file.parent_path());
    fs::write_atomically(file, text);
    run_.tracking.record(run_.state.step, record::Samples{samples});
    run_.tracking.record_file(run_.state.step, file);
    log::info(fmt::format("sample at step {}: {}", run_.state.step, text));
  }

  Training& run_;
  int64_t written_ = 0;  // step of the last samples
};

class Checkpoints final : public Observer {
 public:
  explicit Checkpoints(Training& training)
      : run_(training),
        saved_(training.state.step),
        incomplete_(!training.state.cut_short.empty()) {}

  void step_ended(StepReport& report) override {
    save(report);
    run_.finish_save(/*wait=*/report.last || report.stopping);
  }

  void run_ended(RunStatus) override {
    // After an error, other ranks may not take part.
    if (run_.ranks.size() == 1) run_.finish_save(/*wait=*/true);
  }

 private:
  void save(const StepReport& report) {
    if (report.step == saved_) {
      // The checkpoint was saved before the step was validated.
      if (incomplete_ && run_.state.cut_short.empty()) run_.save(report.val_loss, true);
      incomplete_ = false;
      return;
    }
    if (!report.last && !report.stopping &&
        !Training::divides(run_.experiment.checkpoint.every, report.step))
      return;
    saved_ = report.step;
    if (report.last || report.stopping)
      run_.save(report.val_loss);
    else
      run_.save_in_background(report.val_loss);
  }

  Training& run_;
  int64_t saved_;    // step of the last checkpoint
  bool incomplete_;  // whether a signal cut the validation or samples of that step short
};

class Status final : public Observer {
 public:
  explicit Status(Training& training) : run_(training) {}

  void step_ended(StepReport& report) override {
    if (!run_.ranks.is_first() || !run_.is_logged(report.step) ||
        seconds_now() < written_ + kInterval)
      return;
    written_ = seconds_now();
    run_.folder.write_status("running", std::nullopt, report.step, "");
  }

 private:
  static constexpr double kInterval = 1;  // seconds, because every write waits for the disk
  Training& run_;
  double written_ = 0;
};

}  // namespace

std::unique_ptr<Observer> validation_observer(Training& training) {
  return std::make_unique<Validation>(training);
}

std::unique_ptr<Observer> samples_observer(Training& training) {
  return std::make_unique<Samples>(training);
}

std::unique_ptr<Observer> checkpoint_observer(Training& training) {
  return std::make_unique<Checkpoints>(training);
}

std::unique_ptr<Observer> status_observer(Training& training) {
  return std::make_unique<Status>(training);
}

}  // namespace dsv3
