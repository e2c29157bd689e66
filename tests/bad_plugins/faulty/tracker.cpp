// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_tracker
#include "../../../tools/templates/plugin/tracker/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>
#include <stdexcept>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Tracker {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::RunContext& run)
      : fault_(options), working_(::Options{}, run) {}

  void start(const dsv3::RunInfo& run) override {
    if (fault_.is("start_throws")) throw std::runtime_error("broken on purpose");
    working_.start(run);
  }
  void deliver(std::span<const dsv3::Event> events) override {
    fault_.work();
    if (fault_.is("retries_at_nan")) throw dsv3::RetryAfter("later", std::nan(""));
    if (fault_.is("ignores_events")) return;
    working_.deliver(events);
  }
  void finish(dsv3::RunStatus status) override {
    if (fault_.is("finish_throws")) throw std::runtime_error("broken on purpose");
    working_.finish(status);
  }

 private:
  Fault fault_;
  JsonLines working_;
};

}  // namespace

void register_tracker(dsv3::Registrar& registrar) {
  registrar.tracker<Faulty>("faulty", "Tracker with a configurable fault");
}

}  // namespace faulty
