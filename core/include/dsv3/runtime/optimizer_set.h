// A run's optimizers: the group that owns each parameter, optimizer state, and checkpointing of
// state and weights.
#pragma once

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/stored_tensors.h>
#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/component.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/strategy.h>

namespace dsv3 {

/// An optimizer group from the experiment, with its optimizer.
struct OptimizerMember {
  OptimizerGroup spec;
  std::shared_ptr<Optimizer> optimizer;
};

/// Creates a slice's optimizer state, zero-initialised. `value` is the shape of the slice's value.
std::vector<at::Tensor> zero_state(std::span<const StateSlot> slots, at::IntArrayRef value,
                                   at::Device device);

class OptimizerSet {
 public:
  /// Creates the experiment's optimizers and assigns each parameter to the first group whose roles
  /// include its role and whose `match`, if set, is found in its full name. Throws a dsv3::Error
  /// (ExitCode::usage) that names the groups and parameters if a group owns no parameters, a
  /// parameter belongs to no group, or an optimizer for matrices owns a vector.
  OptimizerSet(const Experiment& experiment, Plugins& plugins, const ParameterStore& store);
  /// Like the constructor above, but with existing optimizers.
  OptimizerSet(std::vector<OptimizerMember> members, const std::vector<Parameter>& parameters);

  /// Returns the index of the group that owns `parameter`.
  int group_of(const Parameter& parameter) const;
  /// Describes the optimizer that updates a parameter: "optimizer 'adamw' (nano.yaml:15:5)".
  std::string owner_of(const std::string& parameter) const;
  /// Returns the groups in the form that Strategy::ready() expects.
  std::vector<GroupSpec> specs() const;

  /// Creates zero-initialised state for every parameter range that `strategy` updates on this rank.
  /// Call this after Strategy::ready().
  void bind(Strategy& strategy);
  /// Receives the updates of one group.
  using UpdateObserver = std::function<void(std::span<const ParameterUpdate>)>;
  /// Applies one optimizer update to all groups. If `observer` is set, it is called after each
  /// group's update, which costs a copy of the group's values.
  void step(Strategy& strategy, const OptimStep& step, const UpdateObserver& observer = {});

  /// Returns the groups whose optimizer has evaluation weights.
  std::vector<int> groups_with_evaluation_weights() const;
  /// Whether the optimizer that updates `parameter` has evaluation weights.
  bool has_evaluation_weights(const std::string& parameter) const;
  /// Returns the evaluation weights of a piece that belongs to `group`: fp32, of the same shape.
  at::Tensor evaluation_weights(int group, const UpdateTensor& tensor);

  /// Returns each group's name and its learning rate multiplied by `factor`.
  std::vector<std::pair<std::string, double>> learning_rates(double factor) const;
  /// Formats a table of the groups: optimizer, learning rate, tensors and parameters. With
  /// `verbose`, the table also has a line for every parameter: optimizer, learning rate, shape and
  /// matrices.
  std::string plan(bool verbose = false) const;
  /// Returns the size of the optimizer state in bytes: on this rank after bind(), on a single rank
  /// before it.
  int64_t state_bytes() const;

  /// Adds the optimizer state that this rank stores as "optimizer/<slot>/<parameter>". State for
  /// one of several matrices is a tensor by itself, ".../<number of the matrix's first element in
  /// the parameter>".
  void save(CheckpointContent& content) const;
  /// Overwrites the optimizer state with saved state, bit for bit. Throws dsv3::Error
  /// (ExitCode::checkpoint) if a tensor is missing or has a different shape or dtype. Ignores other
  /// tensors. Where pieces of a parameter differ from those that were saved, a piece takes the
  /// scalar state of the one that had its first element.
  void load(const StoredTensors& tensors);

 private:
  struct Owned {
    Parameter parameter;
    int group;
  };
  /// The optimizer state for one parameter range, by slot.
  struct State {
    Range range;
    bool whole_matrix = false;
    std::vector<StateSlot> slots;
    std::vector<at::Tensor> tensors;
  };
  using RangeKey = std::pair<std::string, int64_t>;  // parameter, first element

  /// Adds the piece's optimizer state to `tensor`, whose `range` the result refers to.
  Slice slice_of(const UpdateTensor& tensor);
  std::vector<ParameterUpdate> updates_of(const OptimizerMember& member,
                                          std::span<const Slice> slices,
                                          std::span<const at::Tensor> values_before) const;
  /// Throws if groups and parameters do not match.
  void check(const std::vector<Parameter>& unowned, const std::vector<bool>& matched) const;

  std::vector<OptimizerMember> members_;
  std::vector<Owned> owned_;             // in declaration order
  std::map<std::string, int> group_of_;  // by parameter name
  std::map<std::string, Role> roles_;    // by parameter name
  std::map<RangeKey, State> states_;
};

/// Adds the master weights that this rank stores as "model/<parameter>".
void save_parameters(Strategy& strategy, CheckpointContent& content);
/// Overwrites the strategy's master weights on this rank with saved values, bit for bit. Call
/// Strategy::loaded() once all ranks have done so. Throws the same errors as OptimizerSet::load.
void load_parameters(Strategy& strategy, const StoredTensors& tensors);

}  // namespace dsv3
