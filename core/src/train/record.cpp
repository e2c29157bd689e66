// The observer that records metrics and shows progress.
#include <fmt/format.h>

#include <dsv3/sdk/log.h>

#include "machine/machine.h"
#include "machine/system_sampler.h"
#include "ranks/exchange.h"
#include "run/run_info.h"
#include "support/host.h"
#include "train/observer.h"
#include "train/progress.h"

namespace dsv3 {
namespace {

class MetricsRecorder final : public Observer {
 public:
  MetricsRecorder(Training& training, bool resumed, bool quiet)
      : run_(training), resumed_(resumed), progress_(quiet) {}

  void run_started() override {
    const RunInfo info = run_info(run_.folder.path(), run_.experiment, resumed_);
    run_.tracking.start(info, run_.state.step, run_.changes, datasets(), run_.checkpoints.all());
    if (run_.ranks.is_first()) run_.trace.start(info, run_.state.step);
    run_.callbacks.run_started(info);
    const double seconds = run_.experiment.system_interval;
    if (run_.ranks.is_first() && seconds > 0) system_.emplace(run_.folder.path(), seconds);
    start_interval();
  }

  void step_ended(StepReport& report) override {
    if (report.recorded) return;
    const bool repeated = report.step == reported_ && report.result;
    reported_ = report.step;
    Event event{
        .step = report.step, .tokens = run_.state.tokens, .time = wall_seconds(), .metrics = {}};
    if (report.result && !repeated) {
      line_ = line_of(report);
      if (!run_.is_logged(report.step) && !report.last) return progress_.show(line_, false);
      agree_on_rates();
      add_step(event, report);
    }
    if (!run_.state.unrecorded.empty()) take_unrecorded(event);
    if (report.val_loss && validated_ != report.step) {
      validated_ = report.step;
      add(event, "val/loss", *report.val_loss);
    }
    if (report.result && !repeated) add_rates(event);
    if (run_.state.cut_short == "validation") return keep_unrecorded(event);
    if (!event.metrics.empty()) record(event, report, !repeated);
  }

  void run_ended(RunStatus status) override {
    progress_.finish();
    system_.reset();
    run_.callbacks.run_ended(status);
    run_.trace.finish(status);
    run_.tracking.finish(status, run_.state.step);
  }

 private:
  std::vector<record::Dataset> datasets() const {
    const std::string& name = run_.experiment.data.plugin;
    std::string options;
    for (const ResolvedValue& value : run_.experiment.resolved.values)
      if (value.path.starts_with("data.") && !value.path.starts_with("data.tokenizer"))
        options += (options.empty() ? "" : ", ") + value.path.substr(5) + ": " + value.yaml();
    std::vector<record::Dataset> datasets{{"training", name, run_.documents_hash, options}};
    if (!run_.state.validation_hash.empty())
      datasets.push_back({"validation", name, run_.state.validation_hash, options});
    return datasets;
  }

  static void add(Event& event, const std::string& name, double value) {
    event.metrics.emplace_back(name, value);
  }

  ProgressLine line_of(const StepReport& report) const {
    ProgressLine line{.step = report.step, .steps = run_.steps};
    const double elapsed = std::max(run_.seconds - interval_seconds_, 1e-9);
    line.loss = report.result->main_loss;
    line.grad_norm = report.result->grad_norm;
    line.lr_factor = report.lr_factor;
    line.tokens_per_s = double(run_.state.tokens - interval_tokens_) / elapsed;
    line.eta_seconds = double((run_.steps - report.step) * run_.tokens_per_step()) /
                       std::max(line.tokens_per_s, 1e-9);
    line.flops_per_s = line.tokens_per_s * run_.model_figures.flops_per_token;
    if (const double peak = peak_flops(run_.device); peak > 0)
      line.mfu = line.flops_per_s / (peak * double(run_.ranks.size()));
    line.wait_fraction = (run_.loader->wait_seconds() - interval_wait_) / elapsed;
    line.memory_bytes = peak_memory_bytes(run_.device);
    return line;
  }

  /// Takes the largest memory and waiting time of all ranks, and the first rank's clock.
  void agree_on_rates() {
    at::Tensor largest = at::tensor({line_.wait_fraction, double(line_.memory_bytes)}, at::kDouble);
    at::Tensor first = at::tensor({line_.tokens_per_s, line_.flops_per_s, line_.mfu}, at::kDouble);
    run_.ranks.control->all_reduce_max(largest);
    run_.ranks.control->broadcast(first, 0);
    line_.wait_fraction = largest[0].item<double>();
    line_.memory_bytes = int64_t(largest[1].item<double>());
    line_.tokens_per_s = first[0].item<double>();
    line_.flops_per_s = first[1].item<double>();
    line_.mfu = first[2].item<double>();
  }

  void add_step(Event& event, const StepReport& report) const {
    const StepResult& result = *report.result;
    add(event, "train/loss", result.main_loss);
    add(event, "train/total_loss", result.loss);
    if (run_.experiment.mtp.depth > 0) add(event, "train/mtp_loss", result.mtp_loss);
    add(event, "train/grad_norm", result.grad_norm);
    if (result.skipped) add(event, "train/skipped", 1);
    for (const auto& [group, lr] : run_.optimizers->learning_rates(report.lr_factor))
      add(event, "train/lr/" + group, lr);
    for (const auto& [name, value] : result.metrics) add(event, name, value);
  }

  void add_rates(Event& event) const {
    add(event, "throughput/tokens_per_s", line_.tokens_per_s);
    if (line_.mfu > 0) add(event, "throughput/mfu", line_.mfu);
    add(event, "data/wait_fraction", line_.wait_fraction);
    add(event, "memory/peak_bytes", double(line_.memory_bytes));
  }

  /// Stores the metrics in the run's state, because a step's metrics are one line.
  void keep_unrecorded(const Event& event) const {
    for (const auto& [name, value] : event.metrics)
      run_.state.unrecorded.push_back({name, number_to_json(value)});
  }

  void take_unrecorded(Event& event) const {
    for (const Json& metric : run_.state.unrecorded)
      add(event, metric.at(0).get<std::string>(), number_from_json(metric.at(1)));
    run_.state.unrecorded = Json::array();
  }

  void record(Event& event, const StepReport& report, bool show) {
    if (run_.ranks.is_first()) {
      run_.folder.require_exists();
      Event line = event;
      add_system_metrics(line, report.last);
      if (run_.metrics->append(line)) run_.tracking.notify();
      event.id = line.id;
    }
    event.id = broadcast_number(event.id);
    if (report.result && show) progress_.show(line_, true);
    if (report.val_loss)
      log::info(fmt::format("step {}  validation loss {:.4f}", report.step, *report.val_loss));
    run_.callbacks.metrics_recorded(event);
    start_interval();
  }

  /// Callbacks do not get system metrics, because their values would differ between ranks.
  void add_system_metrics(Event& line, bool last) {
    if (!system_) return;
    const SystemMetrics metrics = last ? system_->take_last() : system_->take();
    line.metrics.insert(line.metrics.end(), metrics.begin(), metrics.end());
  }

  int64_t broadcast_number(int64_t number) const {
    at::Tensor tensor = at::full({1}, number, at::kLong);
    run_.ranks.control->broadcast(tensor, 0);
    return tensor.item<int64_t>();
  }

  /// Starts the interval over which rates are measured.
  void start_interval() {
    interval_seconds_ = run_.seconds;
    interval_wait_ = run_.loader->wait_seconds();
    interval_tokens_ = run_.state.tokens;
  }

  Training& run_;
  const bool resumed_;
  Progress progress_;
  ProgressLine line_;
  std::optional<SystemSampler> system_;     // on the first rank only
  int64_t reported_ = -1, validated_ = -1;  // steps of the last report and validation
  double interval_seconds_ = 0, interval_wait_ = 0;
  int64_t interval_tokens_ = 0;
};

}  // namespace

std::unique_ptr<Observer> metrics_observer(Training& training, bool resumed, bool quiet) {
  return std::make_unique<MetricsRecorder>(training, resumed, quiet);
}

}  // namespace dsv3
