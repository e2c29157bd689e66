// A single-rank strategy that treats parameters as sharded strategies do. Parameters are grouped
// into units, such as one block. A unit's parameter values exist only between enter() and leave(),
// in the forward and the backward pass. The strategy moves a unit's gradients to a separate buffer
// as soon as the unit's backward pass ends. Code that reads values or accumulates gradients at any
// other time encounters NaN or unmapped memory. Training is bit-identical to training with the
// `single` strategy.
#pragma once

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/backward_hook.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/flat.h>
#include <dsv3/sdk/options.h>
#include <dsv3/sdk/strategy.h>

namespace dsv3::conformance {

struct FlatOptions {
  std::string freed = "nan";
  static void describe(OptionSchema<FlatOptions>& s) {
    s.add("freed", &FlatOptions::freed,
          "state of parameter memory between uses: filled with NaN, or unmapped")
        .choices({"nan", "unmapped"});
  }
};

class FlatStrategy final : public Strategy {
 public:
  using Options = FlatOptions;
  FlatStrategy(const FlatOptions& options, const StrategyContext& context)
      : options_(options), context_(context) {
    if (context.world && context.world->size() > 1)
      throw Error("strategy 'flat' supports one rank, but this run has " +
                      std::to_string(context.world->size()) + "; start one rank",
                  ExitCode::usage);
  }

  int adopt(UnitSpec spec) override {
    const FlatLayout layout(spec.params);
    Unit& unit = units_.emplace_back(Unit{std::move(spec), layout});
    const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(context_.device);
    unit.master = at::zeros({unit.layout.size()}, fp32);
    unit.buffers = {at::empty_like(unit.master)};
    if (context_.compute_dtype != at::kFloat)
      unit.buffers.push_back(at::empty_like(unit.master, fp32.dtype(context_.compute_dtype)));
    unit.reduced = at::zeros_like(unit.master);
    unit.grad = at::full_like(unit.master, kNan);
    for (size_t i = 0; i < unit.spec.params.size(); ++i) {
      UnitParam& param = unit.spec.params[i];
      unit.layout.view(unit.master, i).copy_(param.tensor.detach());
      const at::Tensor& buffer = param.keep_fp32 ? unit.buffers.front() : unit.buffers.back();
      param.tensor.set_data(unit.layout.view(buffer, i));
      param.tensor.set_requires_grad(true);
      param.tensor.mutable_grad() = unit.layout.view(unit.grad, i);
    }
    release(unit);
    return int(units_.size()) - 1;
  }

  void ready(const std::vector<GroupSpec>& groups) override { groups_ = groups; }

  void begin_microbatch(bool) override {
    for (Unit& unit : units_) {
      if (unit.uses != 0)
        throw Error("enter() was called more often than leave() for unit '" + unit.spec.name + "'");
      unit.pending = 0;
    }
  }

  void enter(int index, TensorRefs inputs) override {
    Unit& unit = units_.at(index);
    open(unit);
    if (at::GradMode::is_enabled()) ++unit.pending;
    on_backward(inputs, [this, index] {
      Unit& unit = units_[index];
      close(unit);
      if (--unit.pending == 0) reduce(unit);
    });
  }

  void leave(int index, TensorRefs outputs) override {
    on_backward(outputs, [this, index] {
      Unit& unit = units_[index];
      // Counts one more use of the unit, even if the backward pass does not need its values. The
      // action of enter() ends this use.
      if (unit.spec.needed_in_backward)
        open(unit);
      else
        ++unit.uses;
      begin_gradients(unit);
    });
    close(units_.at(index));
  }

  void backward(at::TensorList roots, at::TensorList grads) override {
    for (const Unit& unit : units_)
      if (unit.uses != 0)
        throw Error("backward() was called before leave() for unit '" + unit.spec.name + "'");
    torch::autograd::backward(roots.vec(), grads.vec());
    // If enter() received no differentiable input (as for the embedding), or if the unit does not
    // affect the loss, no action has ended the unit's use, so end it here.
    for (Unit& unit : units_) {
      if (unit.accumulating) reduce(unit);
      if (unit.uses != 0) release(unit);
      unit.uses = 0;
    }
  }

  at::Tensor grad_norm() override {
    std::vector<at::Tensor> grads;
    for (const Unit& unit : units_) grads.push_back(unit.reduced);
    return norm_of(grads, at::kCPU);
  }

  void scale_grads(const at::Tensor& factor) override {
    for (Unit& unit : units_) scale_gradient(unit.reduced, factor);
  }

  void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) override {
    const bool whole = groups_.at(group).whole_matrices;
    std::vector<UpdateTensor> tensors;
    for (const Unit& unit : units_)
      for (size_t i = 0; i < unit.spec.params.size(); ++i) {
        if (unit.spec.params[i].group != group) continue;
        for (const Range& range : dsv3::update_ranges(unit.spec.params[i], whole))
          tensors.push_back({range, piece_of(unit.layout.view(unit.master, i), range, whole),
                             piece_of(unit.layout.view(unit.reduced, i), range, whole)});
      }
    fn(tensors);
  }

  void end_step() override {
    for (Unit& unit : units_) unit.reduced.zero_();
  }

  std::vector<Range> update_ranges(int group) const override {
    std::vector<Range> ranges;
    for (const Unit& unit : units_)
      for (const UnitParam& param : unit.spec.params)
        if (param.group == group)
          for (const Range& range : dsv3::update_ranges(param, groups_.at(group).whole_matrices))
            ranges.push_back(range);
    return ranges;
  }

  std::vector<OwnedTensor> owned() override {
    std::vector<OwnedTensor> tensors;
    for (const Unit& unit : units_)
      for (size_t i = 0; i < unit.spec.params.size(); ++i)
        tensors.push_back({whole_range(unit.spec.params[i]), unit.layout.view(unit.master, i)});
    return tensors;
  }

  void loaded() override {}

  Cost estimate(const ModelPlan& plan, int) const override {
    int64_t elements = 0, largest = 0;
    for (const UnitSpec& unit : plan.units) {
      const int64_t size = FlatLayout(unit.params).size();
      elements += size;
      largest = std::max(largest, size);
    }
    return {.bytes_held = 12 * elements, .bytes_peak = 12 * elements + 8 * largest};
  }

 private:
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

  struct Unit {
    UnitSpec spec;
    FlatLayout layout;
    at::Tensor master = {};  // fp32, never freed
    std::vector<at::Tensor> buffers =
        {};  // parameter values in fp32 and in the compute dtype; freed between uses
    at::Tensor reduced = {};    // fp32 gradient sum over finished micro-batches
    at::Tensor grad = {};       // autograd accumulates gradients here; NaN outside the unit's
                                // backward pass
    int uses = 0;               // number of current uses; the values are freed when it becomes 0
    int pending = 0;            // number of enter() calls in this micro-batch whose backward pass
                                // has not run yet
    bool accumulating = false;  // whether autograd is accumulating into `grad`
  };

  void open(Unit& unit) {
    if (unit.uses++ > 0) return;
    for (at::Tensor& buffer : unit.buffers) {
      if (options_.freed == "unmapped") resize(buffer, size_t(buffer.numel()));
      buffer.copy_(unit.master);
    }
  }

  void close(Unit& unit) {
    if (unit.uses == 0)
      throw Error("leave() was called, or a backward pass ended, before enter() for unit '" +
                  unit.spec.name + "'");
    if (--unit.uses == 0) release(unit);
  }

  void release(Unit& unit) {
    for (at::Tensor& buffer : unit.buffers)
      if (options_.freed == "nan")
        buffer.fill_(kNan);
      else
        resize(buffer, 0);
  }

  static void resize(at::Tensor& buffer, size_t elements) {
    c10::StorageImpl* storage = buffer.storage().unsafeGetStorageImpl();
    const size_t bytes = elements * buffer.element_size();
    storage->set_data_ptr_noswap(bytes ? storage->allocator()->allocate(bytes)
                                       : at::DataPtr(nullptr, buffer.device()));
    storage->set_nbytes(bytes);
  }

  // Starts from the gradient sum of earlier micro-batches instead of zero. Additions then happen in
  // the same order as in the `single` strategy, even if a parameter receives several gradients.
  void begin_gradients(Unit& unit) {
    if (unit.accumulating) return;
    unit.grad.copy_(unit.reduced);
    unit.accumulating = true;
  }

  void reduce(Unit& unit) {
    unit.reduced.copy_(unit.grad);
    unit.grad.fill_(kNan);
    unit.accumulating = false;
  }

  FlatOptions options_;
  StrategyContext context_;
  std::vector<Unit> units_;
  std::vector<GroupSpec> groups_;
};

}  // namespace dsv3::conformance
