// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_strategy
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
      : fault_(options), working_(dsv3::NoOptions{}, context) {}

  int adopt(dsv3::UnitSpec unit) override {
    const int index = working_.adopt(std::move(unit));
    return fault_.is("counts_from_one") ? index + 1 : index;
  }
  void ready(const std::vector<dsv3::GroupSpec>& groups) override { working_.ready(groups); }
  void begin_microbatch(bool last) override {
    fault_.work();
    working_.begin_microbatch(last);
  }
  void enter(int unit, dsv3::TensorRefs inputs) override { working_.enter(unit, inputs); }
  void leave(int unit, dsv3::TensorRefs outputs) override { working_.leave(unit, outputs); }
  void backward(at::TensorList roots, at::TensorList grads) override {
    if (fault_.is("backward_throws")) throw std::runtime_error("broken on purpose");
    working_.backward(roots, grads);
  }
  at::Tensor grad_norm() override {
    if (fault_.is("norm_negative")) return at::full({}, -1.0, at::kDouble);
    if (fault_.is("forgets_gradients")) working_.scale_grads(at::zeros({}, at::kDouble));
    return working_.grad_norm();
  }
  void scale_grads(const at::Tensor& factor) override { working_.scale_grads(factor); }
  void update(int group, const std::function<void(std::span<dsv3::UpdateTensor>)>& fn) override {
    working_.update(group, [&](std::span<dsv3::UpdateTensor> tensors) {
      for (dsv3::UpdateTensor& each : tensors)
        if (fault_.is("gradient_missing")) each.grad = at::Tensor();
      fn(fault_.is("forgets_parameters") ? tensors.first(0) : tensors);
    });
  }
  void end_step() override {
    if (fault_.is("keeps_gradients")) return working_.loaded();
    working_.end_step();
  }
  std::vector<dsv3::Range> update_ranges(int group) const override {
    return working_.update_ranges(group);
  }
  std::vector<dsv3::OwnedTensor> owned() override {
    std::vector<dsv3::OwnedTensor> owned = working_.owned();
    for (dsv3::OwnedTensor& each : owned)
      if (fault_.is("masters_in_bf16")) each.value = each.value.to(at::kBFloat16);
    return owned;
  }
  void loaded() override { working_.loaded(); }
  dsv3::Cost estimate(const dsv3::ModelPlan& plan, int ranks) const override {
    return working_.estimate(plan, ranks);
  }

 private:
  Fault fault_;
  OneDevice working_;
};

}  // namespace

void register_strategy(dsv3::Registrar& registrar) {
  registrar.strategy<Faulty>("faulty", "Strategy with a configurable fault");
}

}  // namespace faulty
