// callback/@NAME@: logs every new minimum of a metric.
#include <cmath>
#include <optional>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/log.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  std::string metric = "val/loss";
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("metric", &Options::metric, "name of the metric, as in metrics.jsonl");
  }
};

class LogMinimum final : public dsv3::Callback {
 public:
  using Options = ::Options;
  explicit LogMinimum(const Options& options) : o_(options) {}

  void on_metrics(const dsv3::Event& event, dsv3::RunControl&) override {
    for (const auto& [name, value] : event.metrics) {
      if (name != o_.metric || std::isnan(value) || (minimum_ && value >= *minimum_)) continue;
      minimum_ = value;
      dsv3::log::info("step " + std::to_string(event.step) + ": new minimum of " + name + ": " +
                      std::to_string(value));
    }
  }

  // Checkpoints contain the state, so that a resumed run continues as if it had not stopped.
  nlohmann::json state() const override {
    return {{"minimum", minimum_ ? nlohmann::json(*minimum_) : nlohmann::json()}};
  }
  void load_state(const nlohmann::json& state) override {
    if (!state.at("minimum").is_null()) minimum_ = state.at("minimum").get<double>();
  }

 private:
  Options o_;
  std::optional<double> minimum_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.callback<LogMinimum>("@NAME@", "@NAME@, based on the callback template");
}
