// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_schedule
#include "../../../tools/templates/plugin/schedule/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>
#include <stdexcept>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Schedule {
 public:
  using Options = FaultyOptions;
  explicit Faulty(const FaultyOptions& options) : fault_(options), working_(::Options{}) {}

  double factor(int64_t step, int64_t total) const override {
    fault_.work();
    if (fault_.is("nan")) return std::nan("");
    if (fault_.is("infinite")) return HUGE_VAL;
    if (fault_.is("negative")) return -1;
    if (fault_.is("counts_calls")) return 1.0 / double(++calls_);
    return working_.factor(step, total);
  }

 private:
  mutable Fault fault_;
  InverseSqrt working_;
  mutable int calls_ = 0;
};

}  // namespace

void register_schedule(dsv3::Registrar& registrar) {
  registrar.schedule<Faulty>("faulty", "Schedule with a configurable fault");
}

}  // namespace faulty
