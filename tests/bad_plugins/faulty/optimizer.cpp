// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_optimizer
#include "../../../tools/templates/plugin/optimizer/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>
#include <stdexcept>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Optimizer {
 public:
  using Options = FaultyOptions;
  explicit Faulty(const FaultyOptions& options) : fault_(options), working_(::Options{}) {}

  bool whole_matrices() const override { return false; }
  double lr() const override { return fault_.is("lr_nan") ? std::nan("") : working_.lr(); }
  std::vector<dsv3::StateSlot> slots() const override { return working_.slots(); }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    fault_.work();
    if (fault_.is("counts_its_own_steps"))
      return working_.step(slices, {step.update, 1.0 / ++steps_});
    working_.step(slices, step);
    for (const dsv3::Slice& slice : slices) {
      if (fault_.is("nan")) slice.value.fill_(std::nan(""));
      if (fault_.is("keeps_gradient")) kept_ = slice.grad;
      if (fault_.is("grows")) grown_.push_back(at::ones({1024}));
    }
  }

 private:
  Fault fault_;
  Lion working_;
  at::Tensor kept_;
  std::vector<at::Tensor> grown_;
  int steps_ = 0;
};

}  // namespace

void register_optimizer(dsv3::Registrar& registrar) {
  registrar.optimizer<Faulty>("faulty", "Optimizer with a configurable fault");
}

}  // namespace faulty
