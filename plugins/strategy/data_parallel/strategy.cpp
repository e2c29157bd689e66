#include "strategy.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/backward_hook.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

namespace dsv3::data_parallel {

std::vector<Segment> segments_of(const UnitSpec& spec, int64_t unit, int64_t rank, int64_t ranks,
                                 const Settings& settings, at::ScalarType compute_dtype,
                                 std::map<int64_t, Place>& places) {
  std::map<std::pair<int64_t, at::ScalarType>, std::vector<UnitParam>> parts;
  for (const UnitParam& param : spec.params) {
    if (!places.contains(param.shards))
      places.emplace(param.shards, place_of(rank, ranks, param.shards, settings));
    // If all masters are on the device, parameters in fp32 are views of them.
    const bool one_dtype = places.at(param.shards).shard_ranks == 1 && !settings.offload_optimizer;
    const at::ScalarType dtype = param.keep_fp32 && !one_dtype ? at::kFloat : compute_dtype;
    parts[{param.shards, dtype}].push_back(param);
  }
  std::vector<Segment> segments;
  for (auto& [key, params] : parts)
    segments.emplace_back(std::move(params), unit, places.at(key.first), settings, key.second);
  return segments;
}

DataParallel::DataParallel(Settings settings, const StrategyContext& context)
    : settings_(std::move(settings)), context_(context), reducer_(settings_) {
  if (!context_.world) context_.world = local_communicator();
  if (settings_.offload_optimizer && !context_.device.is_cuda()) {
    if (context_.device.is_cpu() && context_.world->rank() == 0)
      log::info("strategy '" + settings_.name +
                "': 'offload' has no effect on a CPU, where all memory is the host's");
    settings_.offload_optimizer = settings_.offload_parameters = false;
  }
  places_.emplace(1, place_of(context_.world->rank(), context_.world->size(), 1, settings_));
}

template <class F>
void DataParallel::each_segment(const F& f) {
  for (Unit& unit : units_)
    for (Segment& segment : unit.segments) f(segment);
}

int DataParallel::adopt(UnitSpec spec) {
  for (const UnitParam& param : spec.params)
    if (!names_.insert(param.name).second)
      throw Error("parameter '" + param.name + "' was adopted twice");
  const auto index = int64_t(units_.size());
  Unit& unit = units_.emplace_back(Unit{spec.name, spec.needed_in_backward});
  unit.segments = segments_of(spec, index, context_.world->rank(), context_.world->size(),
                              settings_, context_.compute_dtype, places_);
  const at::NoGradGuard no_grad;
  for (Segment& segment : unit.segments) segment.adopt(context_.device);
  return int(index);
}

void DataParallel::ready(const std::vector<GroupSpec>& groups) {
  groups_ = groups;
  norms_ = context_.world->subgroup(
      place_of(context_.world->rank(), context_.world->size(), 1, settings_).replicas);
  for (const auto& [slices, place] : places_)
    channels_.emplace(slices, connect(*context_.world, place));
  std::vector<const Segment*> segments;
  each_segment([&](Segment& segment) {
    segment.connect(&channels_.at(segment.params().front().shards));
    segments.push_back(&segment);
  });
  matrices_ = find_matrices(segments, groups_, context_.world->size());
}

void DataParallel::begin_microbatch(bool last) {
  const at::NoGradGuard no_grad;
  last_ = last;
  plan_ = std::exchange(entered_, {});
  left_.clear();
  for (Unit& unit : units_) {
    // A forward pass may have ended early, by an exception.
    unit.uses = unit.unfinished = 0;
    unit.reduced = false;
    release(unit);
    for (Segment& segment : unit.segments) segment.allocate_gradients();
  }
}

void DataParallel::open(Unit& unit) {
  const at::NoGradGuard no_grad;
  ++unit.uses;
  for (Segment& segment : unit.segments) segment.start_values();
  for (Segment& segment : unit.segments) segment.wait_values();
}

void DataParallel::close(Unit& unit, bool keep) {
  if (unit.uses == 0)
    throw Error("leave() was called, or a backward pass ended, before enter() for unit '" +
                unit.name + "'");
  if (--unit.uses == 0 && !keep) release(unit);
}

void DataParallel::release(Unit& unit) {
  const at::NoGradGuard no_grad;
  for (Segment& segment : unit.segments) segment.release_values();
}

/// Gathers the units that the previous forward pass entered after this one.
void DataParallel::prefetch_forward(int index) {
  const size_t position = entered_.size();
  entered_.push_back(index);
  if (position >= plan_.size() || plan_[position] != index) return;
  const at::NoGradGuard no_grad;
  const size_t end = std::min(plan_.size(), position + 1 + size_t(settings_.prefetch));
  for (size_t i = position + 1; i < end; ++i)
    for (Segment& segment : units_[size_t(plan_[i])].segments) segment.start_values();
}

/// Gathers the units whose backward passes are next.
void DataParallel::prefetch_backward() {
  const at::NoGradGuard no_grad;
  int64_t count = settings_.prefetch;
  for (auto index = left_.rbegin(); index != left_.rend() && count > 0; ++index) {
    Unit& unit = units_[size_t(*index)];
    if (!unit.needed_in_backward) continue;
    for (Segment& segment : unit.segments) segment.start_values();
    --count;
  }
}

void DataParallel::enter(int index, TensorRefs inputs) {
  Unit& unit = units_.at(size_t(index));
  open(unit);
  if (!at::GradMode::is_enabled()) return;
  prefetch_forward(index);
  ++unit.unfinished;
  on_backward(inputs, [this, &unit] {
    --unit.unfinished;
    close(unit, !settings_.reshard_after_forward && unit.unfinished > 0);
    if (unit.unfinished == 0) reduce(unit);
  });
}

void DataParallel::leave(int index, TensorRefs outputs) {
  Unit& unit = units_.at(size_t(index));
  const bool continues = on_backward(outputs, [this, index, &unit] {
    if (!left_.empty() && left_.back() == index) left_.pop_back();
    // Counts one more use of the unit, even if the backward pass does not need its values. The
    // action of enter() ends this use.
    if (unit.needed_in_backward)
      open(unit);
    else
      ++unit.uses;
    prefetch_backward();
    const at::NoGradGuard no_grad;
    for (Segment& segment : unit.segments) segment.begin_gradients();
  });
  if (continues) left_.push_back(index);
  close(unit, continues && unit.needed_in_backward && !settings_.reshard_after_forward);
}

void DataParallel::reduce(Unit& unit) {
  unit.reduced = true;
  reducer_.advance();
  for (Segment& segment : unit.segments)
    if (last_ || segment.frees_gradients()) {
      segment.begin_gradients();
      reducer_.start(segment, last_);
    }
}

void DataParallel::backward(at::TensorList roots, at::TensorList grads) {
  for (const Unit& unit : units_)
    if (unit.uses != 0)
      throw Error("backward() was called before leave() for unit '" + unit.name + "'");
  torch::autograd::backward(roots.vec(), grads.vec());
  end_backward();
}

/// If enter() received no differentiable input (as for the embedding), or if the unit does not
/// affect the loss, no action has ended the unit's use.
void DataParallel::end_backward() {
  for (Unit& unit : units_) {
    if (!unit.reduced && (last_ || unit.unfinished > 0)) reduce(unit);
    unit.uses = 0;
    release(unit);
  }
  reducer_.finish();
}

at::Tensor DataParallel::grad_norm() {
  std::vector<at::Tensor> gradients;
  each_segment([&](const Segment& segment) { gradients.push_back(segment.counted()); });
  const at::Tensor norm = norm_of(gradients, context_.device);
  if (context_.world->size() == 1) return norm;
  at::Tensor squares = norm.square().view({1});
  norms_->all_reduce_sum(squares);
  return squares.sqrt().squeeze(0);
}

void DataParallel::scale_grads(const at::Tensor& factor) {
  each_segment([&](const Segment& segment) {
    if (segment.reduced().defined()) scale_gradient(segment.reduced(), factor);
  });
}

void DataParallel::update(int group, const UpdateFunction& fn) {
  const at::NoGradGuard no_grad;
  // Masters must not change while they are sent to other ranks.
  each_segment([](Segment& segment) {
    if (!segment.frees_values()) segment.wait_values();
  });
  if (!groups_.at(size_t(group)).whole_matrices) return update_pieces(group, fn);
  for (const auto& [slices, matrices] : matrices_[size_t(group)])
    MatrixUpdate(matrices, context_.device).run(fn);
}

std::vector<UpdateTensor> DataParallel::pieces_of(const Unit& unit, int group) const {
  std::vector<UpdateTensor> tensors;
  for (const Segment& segment : unit.segments)
    for (size_t i = 0; i < segment.params().size(); ++i) {
      if (segment.params()[i].group != group) continue;
      const Range range = segment.own_range(i);
      if (range.begin == range.end) continue;
      at::Tensor grad = segment.own_view(segment.reduced(), i, range);
      if (grad.defined()) grad = grad.to(segment.master().device());
      tensors.push_back({range, segment.own_view(segment.master(), i, range), std::move(grad)});
    }
  return tensors;
}

/// Gradients of offloaded parameters are copied to the host unit by unit.
void DataParallel::update_pieces(int group, const UpdateFunction& fn) {
  std::vector<UpdateTensor> tensors;
  for (const Unit& unit : units_) {
    std::vector<UpdateTensor> added = pieces_of(unit, group);
    std::ranges::move(added, std::back_inserter(tensors));
    if (!settings_.offload_optimizer || tensors.empty()) continue;
    fn(tensors);
    tensors.clear();
  }
  if (!tensors.empty()) fn(tensors);
}

void DataParallel::refresh() {
  const at::NoGradGuard no_grad;
  each_segment([](Segment& segment) { segment.refresh(); });
}

void DataParallel::end_step() {
  const at::NoGradGuard no_grad;
  each_segment([](Segment& segment) { segment.clear_gradients(); });
  refresh();
}

void DataParallel::loaded() {
  refresh();
}

std::vector<Range> DataParallel::update_ranges(int group) const {
  std::vector<Range> ranges;
  if (groups_.at(size_t(group)).whole_matrices) {
    for (const auto& [slices, matrices] : matrices_[size_t(group)])
      for (const Matrix& matrix : matrices)
        if (matrix.owner == matrix.segment->place().index) ranges.push_back(matrix.range);
    return ranges;
  }
  for (const Unit& unit : units_)
    for (const UpdateTensor& tensor : pieces_of(unit, group)) ranges.push_back(tensor.range);
  return ranges;
}

std::vector<OwnedTensor> DataParallel::owned() {
  std::vector<OwnedTensor> tensors;
  each_segment([&](const Segment& segment) {
    for (size_t i = 0; i < segment.params().size(); ++i) {
      const Range range = segment.own_range(i);
      if (range.begin == range.end) continue;
      const at::Tensor value = segment.own_view(segment.master(), i, range);
      const bool whole = range.end - range.begin == segment.params()[i].tensor.numel();
      tensors.push_back({range, whole ? value.view(range.box_shape) : value});
    }
  });
  return tensors;
}

}  // namespace dsv3::data_parallel
