// Keeps everything on one device. Serves as the reference implementation for other strategies.
#include <set>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/flat.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/strategy.h>

namespace {

using dsv3::Cost;
using dsv3::FlatLayout;
using dsv3::GroupSpec;
using dsv3::ModelPlan;
using dsv3::OwnedTensor;
using dsv3::Range;
using dsv3::UnitParam;
using dsv3::UnitSpec;
using dsv3::UpdateTensor;

/// Parameters that the model passes to adopt() together. They are views of `master`, or of
/// `compute` if the compute dtype is not fp32.
struct Unit {
  UnitSpec spec;
  FlatLayout layout;
  at::Tensor master;   // fp32 [layout.size()]
  at::Tensor compute;  // compute dtype, same layout; undefined if the compute dtype is fp32
  at::Tensor grad;     // fp32, same layout; undefined until the first forward pass in training

  at::Tensor master_of(size_t i) const { return layout.view(master, i); }
};

class Single final : public dsv3::Strategy {
 public:
  using Options = dsv3::NoOptions;
  Single(const Options&, const dsv3::StrategyContext& context) : context_(context) {
    if (context.world && context.world->size() > 1)
      throw dsv3::Error("supports one rank, but this run has " +
                            std::to_string(context.world->size()) +
                            "; start one rank, or use `strategy: auto`",
                        dsv3::ExitCode::usage);
  }

  int adopt(UnitSpec spec) override {
    for (const UnitParam& param : spec.params)
      if (!names_.insert(param.name).second)
        throw dsv3::Error("parameter '" + param.name + "' was adopted twice");
    FlatLayout layout(spec.params);
    Unit unit{std::move(spec), std::move(layout), {}, {}, {}};
    const auto options = at::TensorOptions().dtype(at::kFloat).device(context_.device);
    unit.master = at::zeros({unit.layout.size()}, options);
    if (context_.compute_dtype != at::kFloat)
      unit.compute = at::zeros({unit.layout.size()}, options.dtype(context_.compute_dtype));
    for (size_t i = 0; i < unit.spec.params.size(); ++i) {
      UnitParam& param = unit.spec.params[i];
      unit.master_of(i).copy_(param.tensor.detach());
      param.tensor.set_data(has_copy(unit, param) ? unit.layout.view(unit.compute, i)
                                                  : unit.master_of(i));
      param.tensor.set_requires_grad(true);
    }
    refresh(unit);
    units_.push_back(std::move(unit));
    return int(units_.size()) - 1;
  }

  void ready(const std::vector<GroupSpec>& groups) override { groups_ = groups; }

  /// Allocates the gradients on first use, so that evaluation and generation do not need memory for
  /// them.
  void begin_microbatch(bool) override {
    for (Unit& unit : units_) {
      if (unit.grad.defined()) continue;
      unit.grad = at::zeros_like(unit.master);
      for (size_t i = 0; i < unit.spec.params.size(); ++i)
        // Autograd adds to an existing gradient in place and in that gradient's dtype, so gradients
        // are fp32 even for bf16 parameters.
        unit.spec.params[i].tensor.mutable_grad() = unit.layout.view(unit.grad, i);
    }
  }

  void enter(int, dsv3::TensorRefs) override {}
  void leave(int, dsv3::TensorRefs) override {}

  void backward(at::TensorList roots, at::TensorList grads) override {
    torch::autograd::backward(roots.vec(), grads.vec());
  }

  at::Tensor grad_norm() override {
    std::vector<at::Tensor> grads;
    for (const Unit& unit : units_) grads.push_back(unit.grad);
    return dsv3::norm_of(grads, context_.device);
  }

  void scale_grads(const at::Tensor& factor) override {
    for (const Unit& unit : units_)
      if (unit.grad.defined()) dsv3::scale_gradient(unit.grad, factor);
  }

  void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) override {
    const bool whole = groups_.at(group).whole_matrices;
    std::vector<UpdateTensor> tensors;
    for (const Unit& unit : units_)
      for (size_t i = 0; i < unit.spec.params.size(); ++i) {
        if (unit.spec.params[i].group != group) continue;
        const at::Tensor value = unit.master_of(i), grad = unit.layout.view(unit.grad, i);
        for (const Range& range : dsv3::update_ranges(unit.spec.params[i], whole))
          tensors.push_back(
              {range, dsv3::piece_of(value, range, whole), dsv3::piece_of(grad, range, whole)});
      }
    fn(tensors);
  }

  void end_step() override {
    for (Unit& unit : units_) {
      if (unit.grad.defined()) unit.grad.zero_();
      refresh(unit);
    }
  }

  std::vector<Range> update_ranges(int group) const override {
    std::vector<Range> ranges;
    for (const Unit& unit : units_)
      for (const UnitParam& param : unit.spec.params)
        if (param.group == group)
          for (Range& range : dsv3::update_ranges(param, groups_.at(group).whole_matrices))
            ranges.push_back(std::move(range));
    return ranges;
  }

  std::vector<OwnedTensor> owned() override {
    std::vector<OwnedTensor> tensors;
    for (const Unit& unit : units_)
      for (size_t i = 0; i < unit.spec.params.size(); ++i)
        tensors.push_back({dsv3::whole_range(unit.spec.params[i]), unit.master_of(i)});
    return tensors;
  }

  void loaded() override {
    for (Unit& unit : units_) refresh(unit);
  }

  Cost estimate(const ModelPlan& plan, int) const override {
    int64_t elements = 0;
    for (const UnitSpec& unit : plan.units) elements += FlatLayout(unit.params).size();
    const int64_t fp32 = elements * 4;
    const int64_t copy = context_.compute_dtype == at::kFloat
                             ? 0
                             : elements * int64_t(c10::elementSize(context_.compute_dtype));
    return {.bytes_held = fp32 + copy, .bytes_peak = 2 * fp32 + copy, .bytes_moved_per_step = 0};
  }

 private:
  static bool has_copy(const Unit& unit, const UnitParam& param) {
    return unit.compute.defined() && !param.keep_fp32;
  }

  /// Copies the fp32 master weights to the compute copy, in one pass.
  static void refresh(Unit& unit) {
    if (unit.compute.defined()) unit.compute.copy_(unit.master);
  }

  dsv3::StrategyContext context_;
  std::vector<Unit> units_;
  std::vector<GroupSpec> groups_;
  std::set<std::string> names_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.strategy<Single>("single", "One device, all parameters resident");
}
