// Stops a run whose loss spikes: exceeds its moving average by a number of standard deviations, as
// in the loss spikes of PaLM (arXiv 2204.02311, section 5.1).
#include <cmath>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  double deviations = 6, decay = 0.9;
  int64_t warmup = 10;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("deviations", &Options::deviations, "standard deviations that make a spike").min(0);
    s.add("decay", &Options::decay, "decay rate of the moving average").min(0).max(1);
    s.add("warmup", &Options::warmup, "number of values before the first spike").min(1);
  }
};

class LossSpike final : public dsv3::Callback {
 public:
  using Options = ::Options;
  explicit LossSpike(const Options& options) : o_(options) {}

  void on_metrics(const dsv3::Event& event, dsv3::RunControl& run) override {
    for (const auto& [name, loss] : event.metrics) {
      if (name != "train/loss" || event.step <= last_step_ || !std::isfinite(loss)) continue;
      last_step_ = event.step;
      const double excess = loss - mean_;
      if (seen_ >= o_.warmup && excess > o_.deviations * std::sqrt(variance_))
        run.stop("the loss spiked to " + std::to_string(loss) + " at step " +
                 std::to_string(event.step) + "; its average was " + std::to_string(mean_));
      const double rate = seen_++ == 0 ? 1 : 1 - o_.decay;
      variance_ = (1 - rate) * (variance_ + rate * excess * excess);
      mean_ += rate * excess;
    }
  }

  nlohmann::json state() const override {
    return {{"seen", seen_}, {"last_step", last_step_}, {"mean", mean_}, {"variance", variance_}};
  }
  void load_state(const nlohmann::json& state) override {
    seen_ = state.at("seen");
    last_step_ = state.at("last_step");
    mean_ = state.at("mean");
    variance_ = state.at("variance");
  }

 private:
  Options o_;
  int64_t seen_ = 0, last_step_ = 0;
  double mean_ = 0, variance_ = 0;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.callback<LossSpike>("loss_spike", "Stops a run whose loss spikes");
}
