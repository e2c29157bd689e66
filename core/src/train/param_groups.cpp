#include <algorithm>
#include <set>

#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/runtime/printable.h>

#include "call/checked.h"
#include "checkpoint/tensor_views.h"
#include "support/regex.h"

namespace dsv3 {
namespace {

std::vector<OptimizerMember> make_members(const Experiment& experiment, Plugins& plugins) {
  std::vector<OptimizerMember> members;
  for (const OptimizerGroup& group : experiment.optimizer)
    members.push_back({group, make<Optimizer>(plugins, group.component)});
  return members;
}

bool whole_matrices(const Optimizer& optimizer) {
  return call(optimizer, "whole_matrices", &Optimizer::whole_matrices);
}

bool whole_vectors(const Optimizer& optimizer) {
  return call(optimizer, "whole_vectors", &Optimizer::whole_vectors);
}

/// Formats the roles of `parameters`, such as "norm, bias".
std::string role_list(const std::vector<Parameter>& parameters) {
  std::vector<std::string> roles;
  for (const Parameter& parameter : parameters)
    if (const std::string role = role_name(parameter.spec.role); !std::ranges::count(roles, role))
      roles.push_back(role);
  return c10::Join(", ", roles);
}

bool needs_matrix(StateSlot::Like like) {
  return like != StateSlot::Like::value && like != StateSlot::Like::scalar;
}

std::vector<StateSlot> state_slots(const Optimizer& optimizer) {
  return call(optimizer, "slots", [](const Optimizer& o) {
    std::vector<StateSlot> slots = o.slots();
    std::set<std::string> names;
    for (const StateSlot& slot : slots) {
      if (!names.insert(slot.name).second)
        throw Error("slots() has two slots named '" + slot.name + "'; slot names must be unique",
                    ExitCode::plugin);
      if (needs_matrix(slot.like) && !o.whole_matrices())
        throw Error("slots(): the shape of '" + slot.name +
                        "' requires whole matrices; return true from whole_matrices()",
                    ExitCode::plugin);
    }
    return slots;
  });
}

/// Shape of a state tensor for a slice of the shape `value`.
std::vector<int64_t> state_shape(StateSlot::Like like, at::IntArrayRef value) {
  using Like = StateSlot::Like;
  switch (like) {
    case Like::scalar:
      return {};
    case Like::rows:
      return {value.at(0)};
    case Like::columns:
      return {value.at(1)};
    case Like::rows_by_rows:
      return {value.at(0), value.at(0)};
    case Like::columns_by_columns:
      return {value.at(1), value.at(1)};
    default:
      return value.vec();
  }
}

bool averages(const Optimizer& optimizer) {
  return call(optimizer, "has_evaluation_weights", &Optimizer::has_evaluation_weights);
}

double base_lr(const Optimizer& optimizer) {
  return checked::number(optimizer, "lr", &Optimizer::lr);
}

/// Formats "nano.yaml:15:5: error: optimizer group 'adamw'", without the position if it is unknown.
std::string group_label(const OptimizerGroup& group) {
  std::string text = "optimizer group '" + printable_line(group.name) + "'";
  const std::string origin = group.component.origin.text();
  return origin.empty() ? text : origin + ": error: " + text;
}

/// Formats a group's condition: "role norm or bias, name matching 'q_a'".
std::string condition(const OptimizerGroup& group) {
  std::string text;
  for (const std::string& role : group.roles) text += (text.empty() ? "role " : " or ") + role;
  if (!group.match.empty())
    text += std::string(text.empty() ? "" : ", ") + "name matching '" + group.match + "'";
  return text.empty() ? "all parameters" : text;
}

/// Compiles the regular expression in the group's `match`. An empty one matches every name.
Regex pattern_of(const OptimizerGroup& group) try {
  return Regex(group.match);
} catch (const Error& error) {
  throw Error(group_label(group) + ": match '" + group.match + "' " + error.what(), error.code());
}

bool matches(const OptimizerGroup& group, const Regex& pattern, const Parameter& parameter) try {
  const std::vector<std::string>& roles = group.roles;
  return (roles.empty() ||
          std::count(roles.begin(), roles.end(), role_name(parameter.spec.role))) &&
         pattern.found_in(parameter.name);
} catch (const Error& error) {
  throw Error(group_label(group) + ": match '" + group.match + "' " + error.what(), error.code());
}

/// Lists the first few names and the number of remaining ones.
std::string name_list(const std::vector<Parameter>& parameters) {
  constexpr size_t kShown = 10;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, parameters.size()); ++i)
    text += "\n  " + parameters[i].name + " (role " + role_name(parameters[i].spec.role) + ")";
  if (parameters.size() > kShown)
    text += "\n  and " + std::to_string(parameters.size() - kShown) + " more";
  return text;
}

/// 1234567 as "1,234,567".
std::string with_commas(int64_t number) {
  std::string text = std::to_string(number);
  for (int64_t i = int64_t(text.size()) - 3; i > 0; i -= 3) text.insert(i, ",");
  return text;
}

/// Formats rows of cells as columns, aligned to the right where `right` is true.
std::string table(const std::vector<std::vector<std::string>>& rows,
                  const std::vector<bool>& right) {
  std::vector<size_t> widths(right.size());
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string fill(widths[i] - row[i].size(), ' ');
      line += (i ? "  " : "") + (right[i] ? fill + row[i] : row[i] + fill);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

}  // namespace

std::vector<at::Tensor> zero_state(std::span<const StateSlot> slots, at::IntArrayRef value,
                                   at::Device device) {
  std::vector<at::Tensor> state;
  for (const StateSlot& slot : slots)
    state.push_back(
        at::zeros(state_shape(slot.like, value), at::TensorOptions(slot.dtype).device(device)));
  return state;
}

OptimizerSet::OptimizerSet(const Experiment& experiment, Plugins& plugins,
                           const ParameterStore& store)
    : OptimizerSet(make_members(experiment, plugins), store.parameters()) {}

OptimizerSet::OptimizerSet(std::vector<OptimizerMember> members,
                           const std::vector<Parameter>& parameters)
    : members_(std::move(members)) {
  std::vector<Regex> patterns;
  for (const OptimizerMember& member : members_) patterns.push_back(pattern_of(member.spec));
  std::vector<bool> matched(members_.size(), false);
  std::vector<Parameter> unowned;
  for (const Parameter& parameter : parameters) {
    for (size_t i = 0; i < patterns.size(); ++i)
      if (matches(members_[i].spec, patterns[i], parameter)) {
        matched[i] = true;
        group_of_.emplace(parameter.name,
                          int(i));  // the first matching group wins
      }
    if (const auto owner = group_of_.find(parameter.name); owner != group_of_.end())
      owned_.push_back({parameter, owner->second});
    else
      unowned.push_back(parameter);
  }
  for (const Parameter& parameter : parameters) roles_.emplace(parameter.name, parameter.spec.role);
  check(unowned, matched);
}

void OptimizerSet::check(const std::vector<Parameter>& unowned,
                         const std::vector<bool>& matched) const {
  std::string text;
  const auto add = [&](const std::string& problem) {
    text += (text.empty() ? "" : "\n") + problem;
  };
  for (size_t i = 0; i < members_.size(); ++i) {
    const OptimizerMember& member = members_[i];
    const std::string label = group_label(member.spec);
    std::vector<Parameter> vectors;
    bool owns = false;
    for (const Owned& owned : owned_) {
      if (owned.group != int(i)) continue;
      owns = true;
      if (owned.parameter.tensor.dim() < 2) vectors.push_back(owned.parameter);
    }
    if (!owns && matched[i])
      add(label + " owns no parameters: all parameters it matches (" + condition(member.spec) +
          ") belong to earlier groups; move this group before them, or remove it");
    if (!owns && !matched[i])
      add(label + " owns no parameters: no parameter has " + condition(member.spec) +
          "; correct its condition, or remove the group");
    if (!vectors.empty() && whole_matrices(*member.optimizer) && !whole_vectors(*member.optimizer))
      add(label + ": '" + member.spec.component.plugin +
          "' works on matrices only; move these vectors to another group before it, such as {role: "
          "[" +
          role_list(vectors) + "], plugin: adamw, lr: NUMBER}:" + name_list(vectors));
  }
  if (!unowned.empty()) {
    const std::string where = members_.empty() ? "" : members_.back().spec.component.origin.text();
    add((where.empty() ? "" : where + ": error: ") +
        "no optimizer group matches these parameters; add one for them, such as {role: " +
        role_name(unowned.front().spec.role) + ", plugin: NAME, lr: NUMBER}:" + name_list(unowned));
  }
  if (!text.empty()) throw Error(text, ExitCode::usage);
}

int OptimizerSet::group_of(const Parameter& parameter) const {
  const auto found = group_of_.find(parameter.name);
  if (found == group_of_.end())
    throw Error("parameter '" + parameter.name +
                "' did not exist when parameters were assigned to optimizers");
  return found->second;
}

std::string OptimizerSet::owner_of(const std::string& parameter) const {
  const ComponentSpec& owner = members_.at(group_of_.at(parameter)).spec.component;
  const std::string origin = owner.origin.text();
  return "optimizer '" + owner.plugin + "'" + (origin.empty() ? "" : " (" + origin + ")");
}

std::vector<GroupSpec> OptimizerSet::specs() const {
  std::vector<GroupSpec> specs;
  for (const OptimizerMember& member : members_)
    specs.push_back({whole_matrices(*member.optimizer)});
  return specs;
}

void OptimizerSet::bind(Strategy& strategy) {
  states_.clear();
  // Optimizer state is on the same device as the parameter values, because updates run there.
  std::map<std::string, at::Device> devices;
  for (const OwnedTensor& owned : checked::owned(strategy))
    devices.emplace(owned.range.name, owned.value.device());
  for (size_t i = 0; i < members_.size(); ++i) {
    const bool whole = whole_matrices(*members_[i].optimizer);
    const std::vector<StateSlot> slots = state_slots(*members_[i].optimizer);
    for (const Range& range : call(strategy, "update_ranges", &Strategy::update_ranges, int(i))) {
      const int64_t count = range.end - range.begin;
      const std::vector<int64_t> shape =
          whole ? std::vector<int64_t>{count / range.box_shape.back(), range.box_shape.back()}
                : std::vector<int64_t>{count};
      const auto found = devices.find(range.name);
      const at::Device device = found == devices.end() ? at::kCPU : found->second;
      states_[{range.name, range.begin}] = {range, whole, slots, zero_state(slots, shape, device)};
    }
  }
}

void OptimizerSet::step(Strategy& strategy, const OptimStep& step, const UpdateObserver& observer) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < members_.size(); ++i)
    checked::update(strategy, int(i), [&](std::span<UpdateTensor> tensors) {
      std::vector<Slice> slices;
      slices.reserve(tensors.size());
      for (const UpdateTensor& tensor : tensors) slices.push_back(slice_of(tensor));
      std::vector<at::Tensor> before;
      for (const Slice& slice : slices)
        if (observer) before.push_back(slice.value.clone());
      call(*members_[i].optimizer, "step", &Optimizer::step, slices, step);
      if (observer) observer(updates_of(members_[i], slices, before));
    });
}

Slice OptimizerSet::slice_of(const UpdateTensor& tensor) {
  const auto state = states_.find({tensor.range.name, tensor.range.begin});
  if (state == states_.end())
    throw Error("the strategy updates '" + range_key(tensor.range) +
                "', which is not in its update_ranges()");
  // A rank may update a matrix of which it stores no value, so bind() cannot know the device.
  for (at::Tensor& slot : state->second.tensors) slot = slot.to(tensor.value.device());
  return {tensor.range, tensor.value, tensor.grad, state->second.tensors};
}

std::vector<int> OptimizerSet::groups_with_evaluation_weights() const {
  std::vector<int> groups;
  for (size_t i = 0; i < members_.size(); ++i)
    if (averages(*members_[i].optimizer)) groups.push_back(int(i));
  return groups;
}

bool OptimizerSet::has_evaluation_weights(const std::string& parameter) const {
  return averages(*members_.at(group_of_.at(parameter)).optimizer);
}

at::Tensor OptimizerSet::evaluation_weights(int group, const UpdateTensor& tensor) {
  const at::NoGradGuard no_grad;
  return checked::evaluation_weights(*members_.at(group).optimizer, slice_of(tensor));
}

std::vector<ParameterUpdate> OptimizerSet::updates_of(
    const OptimizerMember& member, std::span<const Slice> slices,
    std::span<const at::Tensor> values_before) const {
  std::vector<ParameterUpdate> updates;
  for (size_t i = 0; i < slices.size(); ++i)
    updates.push_back({.range = slices[i].range,
                       .role = roles_.at(slices[i].range.name),
                       .optimizer = member.spec.component.plugin,
                       .whole_matrices = whole_matrices(*member.optimizer),
                       .grad = slices[i].grad,
                       .change = slices[i].value - values_before[i],
                       .value = slices[i].value});
  return updates;
}

std::vector<std::pair<std::string, double>> OptimizerSet::learning_rates(double factor) const {
  std::vector<std::pair<std::string, double>> rates;
  for (const OptimizerMember& member : members_)
    rates.emplace_back(member.spec.name, base_lr(*member.optimizer) * factor);
  return rates;
}

std::string OptimizerSet::plan(bool verbose) const {
  std::vector<std::vector<std::string>> rows{
      {"group", "optimizer", "learning rate", "tensors", "parameters"}};
  for (size_t i = 0; i < members_.size(); ++i) {
    int64_t tensors = 0, elements = 0;
    for (const Owned& owned : owned_) {
      if (owned.group != int(i)) continue;
      ++tensors;
      elements += owned.parameter.tensor.numel() * owned.parameter.spec.shards;
    }
    const OptimizerMember& member = members_[i];
    rows.push_back({member.spec.name, member.spec.component.plugin,
                    c10::str(base_lr(*member.optimizer)), with_commas(tensors),
                    with_commas(elements)});
  }
  std::string text = table(rows, {false, false, true, true, true});
  if (!verbose) return text;
  rows = {{"parameter", "optimizer", "learning rate", "shape", "matrices"}};
  for (const Owned& owned : owned_) {
    const OptimizerMember& member = members_[owned.group];
    const Parameter& parameter = owned.parameter;
    const bool whole = whole_matrices(*member.optimizer);
    rows.push_back({parameter.name, member.spec.component.plugin,
                    c10::str(base_lr(*member.optimizer)), c10::str(parameter.tensor.sizes()),
                    whole ? with_commas(parameter.spec.matrices) : "-"});
  }
  return text + "\n" + table(rows, {false, false, true, false, true});
}

int64_t OptimizerSet::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& [key, state] : states_)
    for (const at::Tensor& tensor : state.tensors) bytes += int64_t(tensor.nbytes());
  if (!states_.empty()) return bytes;
  for (const Owned& owned : owned_) {
    const Optimizer& optimizer = *members_[owned.group].optimizer;
    const at::Tensor& tensor = owned.parameter.tensor;
    const bool whole = whole_matrices(optimizer);
    const int64_t pieces = whole ? owned.parameter.spec.matrices : 1;
    std::vector<int64_t> shape{tensor.numel() / pieces};
    if (whole) shape = {shape[0] / tensor.size(-1), tensor.size(-1)};
    for (const StateSlot& slot : state_slots(optimizer))
      bytes += pieces * int64_t(c10::elementSize(slot.dtype)) *
               c10::multiply_integers(state_shape(slot.like, shape));
  }
  return bytes;
}

void OptimizerSet::save(CheckpointContent& content) const {
  for (const auto& [key, state] : states_)
    for (size_t i = 0; i < state.slots.size(); ++i) {
      const std::string prefix = "optimizer/" + state.slots[i].name + "/";
      if (!state.whole_matrix)
        add_range(content, prefix, flattened(state.range), state.tensors[i],
                  state.slots[i].like == StateSlot::Like::scalar);
      else if (state.range.primary)
        add_whole(content, prefix + range_key(state.range), state.tensors[i]);
    }
}

void OptimizerSet::load(const StoredTensors& tensors) {
  for (const auto& [key, state] : states_)
    for (size_t i = 0; i < state.slots.size(); ++i) {
      const std::string prefix = "optimizer/" + state.slots[i].name + "/";
      if (state.whole_matrix)
        tensors.read(prefix + range_key(state.range), state.tensors[i]);
      else if (state.slots[i].like == StateSlot::Like::scalar)
        tensors.read_value(prefix + state.range.name, flattened(state.range), state.tensors[i]);
      else
        tensors.read(prefix + state.range.name, flattened(state.range), state.tensors[i]);
    }
}

void save_parameters(Strategy& strategy, CheckpointContent& content) {
  for (const OwnedTensor& owned : checked::owned(strategy))
    add_range(content, "model/", owned.range, owned.value);
}

void load_parameters(Strategy& strategy, const StoredTensors& tensors) {
  for (const OwnedTensor& owned : checked::owned(strategy))
    tensors.read("model/" + owned.range.name, owned.range, owned.value);
}

}  // namespace dsv3
