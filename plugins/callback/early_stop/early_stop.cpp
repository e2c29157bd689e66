// Stops a run when a metric has not improved for a number of its values.
#include <cmath>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/log.h>
#include <dsv3/sdk/plugin.h>

namespace {

enum class Mode { min, max };

struct EarlyStopOptions {
  std::string metric = "val/loss";
  int64_t patience = 5;
  double min_delta = 0;
  Mode mode = Mode::min;

  static void describe(dsv3::OptionSchema<EarlyStopOptions>& s) {
    s.add("metric", &EarlyStopOptions::metric, "name of the metric, as in metrics.jsonl");
    s.add("patience", &EarlyStopOptions::patience,
          "number of values in a row without an improvement after which the run stops")
        .min(1)
        .max(1 << 30);
    s.add("min_delta", &EarlyStopOptions::min_delta,
          "smallest difference from the best value that counts as an improvement")
        .min(0);
    s.add("mode", &EarlyStopOptions::mode, {{"min", Mode::min}, {"max", Mode::max}},
          "whether lower (min) or higher (max) values are better");
  }
};

class EarlyStop final : public dsv3::Callback {
 public:
  using Options = EarlyStopOptions;
  explicit EarlyStop(const EarlyStopOptions& options) : o_(options) {}

  void on_metrics(const dsv3::Event& event, dsv3::RunControl& run) override {
    bool found = false;
    for (const auto& [name, value] : event.metrics) {
      trained_ |= name == "train/loss";
      validated_ |= name == "val/loss";
      if (name != o_.metric) continue;
      found = true;
      observe(event.step, value, run);
    }
    // Both kinds of metrics have been recorded, so that the name may be misspelled.
    if (!found && best_step_ < 0 && trained_ && validated_ && !warned_) {
      dsv3::log::warning("early_stop: the run has not recorded a metric '" + o_.metric +
                         "' so far; metrics.jsonl lists the names");
      warned_ = true;
    }
  }

  void on_run_end(dsv3::RunStatus status) override {
    if (status == dsv3::RunStatus::finished && best_step_ < 0)
      dsv3::log::warning("early_stop: the run recorded no metric '" + o_.metric +
                         "'; metrics.jsonl lists the names");
  }

  nlohmann::json state() const override {
    return {
        {"best", best_}, {"best_step", best_step_}, {"last_step", last_step_}, {"misses", misses_}};
  }
  void load_state(const nlohmann::json& state) override {
    best_ = state.at("best").get<double>();
    best_step_ = state.at("best_step").get<int64_t>();
    last_step_ = state.at("last_step").get<int64_t>();
    misses_ = state.at("misses").get<int64_t>();
  }

 private:
  void observe(int64_t step, double value, dsv3::RunControl& run) {
    if (step <= last_step_) return;  // a resumed run repeats a step
    last_step_ = step;
    const double gain = o_.mode == Mode::min ? best_ - value : value - best_;
    if (best_step_ < 0 ? !std::isnan(value) : gain > o_.min_delta) {
      best_ = value;
      best_step_ = step;
      misses_ = 0;
      return;
    }
    if (++misses_ < o_.patience) return;
    run.stop(fmt::format("{} has not improved for {} value{}; its best value was {:.5g} at step {}",
                         o_.metric, misses_, misses_ == 1 ? "" : "s", best_, best_step_));
  }

  EarlyStopOptions o_;
  double best_ = 0;
  bool trained_ = false, validated_ = false, warned_ = false;
  int64_t best_step_ = -1;  // -1 = no value yet
  int64_t last_step_ = -1;
  int64_t misses_ = 0;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.callback<EarlyStop>("early_stop", "Stops a run whose metric no longer improves");
}
