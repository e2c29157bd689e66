// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_callback
#include "../../../tools/templates/plugin/callback/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Callback {
 public:
  using Options = FaultyOptions;
  explicit Faulty(const FaultyOptions& options) : fault_(options), working_(::Options{}) {}

  void on_metrics(const dsv3::Event& event, dsv3::RunControl& run) override {
    fault_.work();
    working_.on_metrics(event, run);
  }
  nlohmann::json state() const override {
    if (fault_.is("nan_state")) return {{"mean", std::nan("")}};
    return working_.state();
  }
  void load_state(const nlohmann::json& state) override { working_.load_state(state); }

 private:
  Fault fault_;
  LogMinimum working_;
};

}  // namespace

void register_callback(dsv3::Registrar& registrar) {
  registrar.callback<Faulty>("faulty", "Callback with a configurable fault");
}

}  // namespace faulty
