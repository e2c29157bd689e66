// strategy/@NAME@: one device, with fp32 master weights and gradients for every parameter.
#include <cmath>
#include <set>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/flat.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/strategy.h>

namespace {

struct Resident {
  dsv3::UnitParam param;  // the component computes with param.tensor
  at::Tensor master;      // fp32
  at::Tensor grad;        // fp32; undefined until the first forward pass in training
};

class OneDevice final : public dsv3::Strategy {
 public:
  using Options = dsv3::NoOptions;
  OneDevice(const Options&, const dsv3::StrategyContext& context) : context_(context) {
    if (context.world && context.world->size() > 1)
      throw dsv3::Error("supports one rank, but this run has " +
                            std::to_string(context.world->size()) +
                            "; start one rank or choose another strategy",
                        dsv3::ExitCode::usage);
  }

  // The component keeps its tensor, but the strategy owns the tensor's storage from now on.
  int adopt(dsv3::UnitSpec unit) override {
    for (dsv3::UnitParam& param : unit.params) {
      if (!names_.insert(param.name).second)
        throw dsv3::Error("parameter '" + param.name + "' was passed to adopt() twice");
      const auto options = at::TensorOptions().dtype(at::kFloat).device(context_.device);
      Resident resident{std::move(param), {}, {}};
      resident.master = at::empty(resident.param.tensor.sizes(), options);
      resident.master.copy_(resident.param.tensor.detach());
      resident.param.tensor.set_data(
          is_copied(resident.param) ? resident.master.to(context_.compute_dtype) : resident.master);
      resident.param.tensor.set_requires_grad(true);
      parameters_.push_back(std::move(resident));
    }
    return units_++;
  }

  void ready(const std::vector<dsv3::GroupSpec>& groups) override { groups_ = groups; }

  // autograd accumulates into an existing gradient in place, so the gradient is fp32 even for bf16
  // parameters.
  void begin_microbatch(bool) override {
    for (Resident& resident : parameters_) {
      if (resident.grad.defined()) continue;
      resident.grad = at::zeros_like(resident.master);
      resident.param.tensor.mutable_grad() = resident.grad;
    }
  }

  // All parameters always stay in memory, so there is nothing to gather or release.
  void enter(int, dsv3::TensorRefs) override {}
  void leave(int, dsv3::TensorRefs) override {}

  void backward(at::TensorList roots, at::TensorList grads) override {
    torch::autograd::backward(roots.vec(), grads.vec());
  }

  at::Tensor grad_norm() override {
    std::vector<at::Tensor> grads;
    for (const Resident& resident : parameters_) grads.push_back(resident.grad);
    return dsv3::norm_of(grads, context_.device);
  }

  void scale_grads(const at::Tensor& factor) override {
    for (Resident& resident : parameters_)
      if (resident.grad.defined()) dsv3::scale_gradient(resident.grad, factor);
  }

  void update(int group, const std::function<void(std::span<dsv3::UpdateTensor>)>& fn) override {
    const bool whole = groups_.at(group).whole_matrices;
    std::vector<dsv3::UpdateTensor> tensors;
    for (const Resident& resident : parameters_) {
      if (resident.param.group != group) continue;
      for (const dsv3::Range& range : dsv3::update_ranges(resident.param, whole))
        tensors.push_back({range, dsv3::piece_of(resident.master, range, whole),
                           dsv3::piece_of(resident.grad, range, whole)});
    }
    fn(tensors);
  }

  void end_step() override {
    for (Resident& resident : parameters_)
      if (resident.grad.defined()) resident.grad.zero_();
    loaded();
  }

  std::vector<dsv3::Range> update_ranges(int group) const override {
    std::vector<dsv3::Range> ranges;
    for (const Resident& resident : parameters_) {
      if (resident.param.group != group) continue;
      for (dsv3::Range& range :
           dsv3::update_ranges(resident.param, groups_.at(group).whole_matrices))
        ranges.push_back(std::move(range));
    }
    return ranges;
  }

  std::vector<dsv3::OwnedTensor> owned() override {
    std::vector<dsv3::OwnedTensor> tensors;
    for (const Resident& resident : parameters_)
      tensors.push_back({dsv3::whole_range(resident.param), resident.master});
    return tensors;
  }

  // Copies the master weights to the tensors that components compute with.
  void loaded() override {
    for (Resident& resident : parameters_)
      if (is_copied(resident.param)) resident.param.tensor.detach().copy_(resident.master);
  }

  dsv3::Cost estimate(const dsv3::ModelPlan& plan, int) const override {
    int64_t masters = 0, copies = 0;
    for (const dsv3::UnitSpec& unit : plan.units)
      for (const dsv3::UnitParam& param : unit.params) {
        masters += 4 * param.tensor.numel();
        if (is_copied(param))
          copies += int64_t(c10::elementSize(context_.compute_dtype)) * param.tensor.numel();
      }
    return {.bytes_held = masters + copies,
            .bytes_peak = 2 * masters + copies,
            .bytes_moved_per_step = 0};
  }

 private:
  bool is_copied(const dsv3::UnitParam& param) const {
    return context_.compute_dtype != at::kFloat && !param.keep_fp32;
  }

  dsv3::StrategyContext context_;
  std::vector<Resident> parameters_;
  std::vector<dsv3::GroupSpec> groups_;
  std::set<std::string> names_;
  int units_ = 0;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.strategy<OneDevice>("@NAME@", "@NAME@, based on the strategy template");
}
