#include "flat_strategy.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <dsv3/sdk/error.h>

namespace dsv3::conformance {
namespace {

using torch::autograd::variable_list;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Passes gradients through and calls `call` first.
struct Gate final : torch::autograd::Node {
  std::function<void()> call;
  variable_list apply(variable_list&& grads) override {
    call();
    return std::move(grads);
  }
};

/// Puts one node behind all differentiable tensors; false when there is none.
bool insert_gate(TensorRefs tensors, std::function<void()> call) {
  if (!at::GradMode::is_enabled()) return false;
  std::vector<at::Tensor*> refs;
  variable_list inputs;
  for (at::Tensor* tensor : tensors)
    if (tensor->defined() && tensor->requires_grad()) {
      refs.push_back(tensor);
      inputs.push_back(*tensor);
    }
  if (refs.empty()) return false;
  std::shared_ptr<Gate> gate(new Gate, torch::autograd::deleteNode);
  gate->call = std::move(call);
  gate->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (at::Tensor* tensor : refs) {
    *tensor = tensor->detach();
    const uint32_t slot = gate->add_input_metadata(*tensor);
    torch::autograd::impl::set_gradient_edge(*tensor, {gate, slot});
  }
  return true;
}

}  // namespace

FlatStrategy::FlatStrategy(const FlatOptions& options, const StrategyContext& context)
    : options_(options), context_(context) {}

int FlatStrategy::adopt(UnitSpec spec) {
  FlatLayout layout(spec.params);
  units_.push_back({std::move(spec), std::move(layout), {}, {}, {}, {}});
  Unit& unit = units_.back();
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

void FlatStrategy::ready(const std::vector<GroupSpec>& groups) {
  groups_ = groups;
}

void FlatStrategy::begin_microbatch(bool) {
  for (Unit& unit : units_) {
    if (unit.uses != 0)
      throw Error("unit '" + unit.spec.name + "' was entered more often than left");
    unit.pending = 0;
  }
}

void FlatStrategy::enter(int index, TensorRefs inputs) {
  Unit& unit = units_.at(index);
  open(unit);
  if (at::GradMode::is_enabled()) ++unit.pending;
  insert_gate(inputs, [this, index] {
    Unit& unit = units_[index];
    close(unit);
    if (--unit.pending == 0) {
      reduce(unit);
      ++reductions_;
    }
  });
}

void FlatStrategy::leave(int index, TensorRefs outputs) {
  insert_gate(outputs, [this, index] {
    Unit& unit = units_[index];
    // Counted also where the values are not needed, so that the enter's node finds a holder to end.
    if (unit.spec.needed_in_backward)
      open(unit);
    else
      ++unit.uses;
    begin_gradients(unit);
  });
  close(units_.at(index));
}

void FlatStrategy::backward(at::TensorList roots, at::TensorList grads) {
  for (const Unit& unit : units_)
    if (unit.uses != 0)
      throw Error("unit '" + unit.spec.name + "' is still entered when backward begins");
  torch::autograd::backward(roots.vec(), grads.vec());
  // Units whose enter had no differentiable input, such as the embedding, or that the loss did not
  // reach.
  for (Unit& unit : units_) {
    if (unit.accumulating) reduce(unit);
    if (unit.uses != 0) release(unit);
    unit.uses = 0;
  }
}

double FlatStrategy::grad_norm() {
  double sum = 0;
  for (const Unit& unit : units_) sum += sum_of_squares(unit.reduced);
  return std::sqrt(sum);
}

void FlatStrategy::scale_grads(double factor) {
  for (Unit& unit : units_) unit.reduced.mul_(factor);
}

void FlatStrategy::update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) {
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

void FlatStrategy::end_step() {
  for (Unit& unit : units_) unit.reduced.zero_();
}

std::vector<Range> FlatStrategy::update_ranges(int group) const {
  std::vector<Range> ranges;
  for (const Unit& unit : units_)
    for (const UnitParam& param : unit.spec.params)
      if (param.group == group)
        for (const Range& range : dsv3::update_ranges(param, groups_.at(group).whole_matrices))
          ranges.push_back(range);
  return ranges;
}

std::vector<OwnedTensor> FlatStrategy::owned() {
  std::vector<OwnedTensor> tensors;
  for (const Unit& unit : units_)
    for (size_t i = 0; i < unit.spec.params.size(); ++i)
      tensors.push_back({whole_range(unit.spec.params[i]), unit.layout.view(unit.master, i)});
  return tensors;
}

Cost FlatStrategy::estimate(std::span<const UnitSpec> units, int) const {
  int64_t elements = 0, largest = 0;
  for (const UnitSpec& unit : units) {
    const int64_t size = FlatLayout(unit.params).size();
    elements += size;
    largest = std::max(largest, size);
  }
  return {.bytes_held = 12 * elements, .bytes_peak = 12 * elements + 8 * largest};
}

void FlatStrategy::open(Unit& unit) {
  if (unit.uses++ > 0) return;
  ++gathers_;
  for (at::Tensor& buffer : unit.buffers) {
    if (options_.freed == "unmapped") {
      c10::StorageImpl* storage = buffer.storage().unsafeGetStorageImpl();
      const size_t bytes = size_t(buffer.numel()) * buffer.element_size();
      storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
      storage->set_nbytes(bytes);
    }
    buffer.copy_(unit.master);
  }
}

void FlatStrategy::close(Unit& unit) {
  if (unit.uses == 0)
    throw Error("unit '" + unit.spec.name + "' is left, or its backward ends, without a beginning");
  if (--unit.uses == 0) release(unit);
}

void FlatStrategy::release(Unit& unit) {
  for (at::Tensor& buffer : unit.buffers) {
    if (options_.freed == "nan") {
      buffer.fill_(kNan);
      continue;
    }
    c10::StorageImpl* storage = buffer.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(at::DataPtr(nullptr, buffer.device()));
    storage->set_nbytes(0);
  }
}

// Continues the sum of earlier micro-batches instead of starting at zero: the same order of
// additions as `single`, also where a parameter gets several gradients in one backward.
void FlatStrategy::begin_gradients(Unit& unit) {
  if (unit.accumulating) return;
  unit.grad.copy_(unit.reduced);
  unit.accumulating = true;
}

void FlatStrategy::reduce(Unit& unit) {
  unit.reduced.copy_(unit.grad);
  unit.grad.fill_(kNan);
  unit.accumulating = false;
}

}  // namespace dsv3::conformance
