// Records statistics of gradients and updates by layer, and warns about faults of a run.
#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/plugin.h>

#include "alarms.h"
#include "updates.h"

namespace health {
namespace {

class Health final : public dsv3::Callback {
 public:
  using Options = health::Options;
  explicit Health(const Options& options) : options_(options), alarms_(options) {}

  bool watches_updates() const override { return true; }
  void on_update(std::span<const dsv3::ParameterUpdate> updates,
                 const dsv3::Metrics& metrics) override {
    record(updates, options_.max_layers, metrics);
  }
  void on_step_end(const dsv3::StepInfo& info, dsv3::RunControl&) override {
    info.metrics.scalar("health/alarms", double(alarms_.active()), dsv3::Reduce::max);
  }
  void on_metrics(const dsv3::Event& event, dsv3::RunControl&) override {
    for (const std::string& warning : alarms_.observe(event)) dsv3::log::warning(warning);
  }
  nlohmann::json state() const override { return alarms_.state(); }
  void load_state(const nlohmann::json& state) override { alarms_.load(state); }

 private:
  Options options_;
  Alarms alarms_;
};

}  // namespace
}  // namespace health

DSV3_PLUGIN(registrar) {
  registrar.callback<health::Health>("health",
                                     "Warns about faults of a run and their likely causes");
}
