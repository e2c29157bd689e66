// The sound component; nothing calls its registration function.
#define dsv3_register_plugin sound_strategy
#include "../../../tools/templates/plugin/strategy/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>
#include <stdexcept>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Strategy {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::StrategyContext& context)
      : fault_(options), sound_(dsv3::NoOptions{}, context) {}

  int adopt(dsv3::UnitSpec unit) override {
    const int index = sound_.adopt(std::move(unit));
    return fault_.is("counts_from_one") ? index + 1 : index;
  }
  void ready(const std::vector<dsv3::GroupSpec>& groups) override { sound_.ready(groups); }
  void begin_microbatch(bool last) override {
    fault_.work();
    sound_.begin_microbatch(last);
  }
  void enter(int unit, dsv3::TensorRefs inputs) override { sound_.enter(unit, inputs); }
  void leave(int unit, dsv3::TensorRefs outputs) override { sound_.leave(unit, outputs); }
  void backward(at::TensorList roots, at::TensorList grads) override {
    if (fault_.is("backward_throws")) throw std::runtime_error("broken on purpose");
    sound_.backward(roots, grads);
  }
  double grad_norm() override {
    if (fault_.is("norm_negative")) return -1;
    if (fault_.is("forgets_gradients")) sound_.scale_grads(0);
    return sound_.grad_norm();
  }
  void scale_grads(double factor) override { sound_.scale_grads(factor); }
  void update(int group, const std::function<void(std::span<dsv3::UpdateTensor>)>& fn) override {
    sound_.update(group, [&](std::span<dsv3::UpdateTensor> tensors) {
      for (dsv3::UpdateTensor& each : tensors)
        if (fault_.is("gradient_missing")) each.grad = at::Tensor();
      fn(fault_.is("forgets_parameters") ? tensors.first(0) : tensors);
    });
  }
  void end_step() override {
    if (fault_.is("keeps_gradients")) return sound_.loaded();
    sound_.end_step();
  }
  std::vector<dsv3::Range> update_ranges(int group) const override {
    return sound_.update_ranges(group);
  }
  std::vector<dsv3::OwnedTensor> owned() override {
    std::vector<dsv3::OwnedTensor> owned = sound_.owned();
    for (dsv3::OwnedTensor& each : owned)
      if (fault_.is("masters_in_bf16")) each.value = each.value.to(at::kBFloat16);
    return owned;
  }
  void loaded() override { sound_.loaded(); }
  dsv3::Cost estimate(std::span<const dsv3::UnitSpec> units, int ranks) const override {
    return sound_.estimate(units, ranks);
  }

 private:
  Fault fault_;
  OneDevice sound_;
};

}  // namespace

void register_strategy(dsv3::Registrar& registrar) {
  registrar.strategy<Faulty>("faulty", "A strategy with a configurable fault");
}

}  // namespace faulty
