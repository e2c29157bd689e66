// The optimizers of a run: which group owns which parameter, the state they keep, and how both go
// into and out of checkpoints.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/component.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// A group of the experiment with its optimizer.
struct OptimizerMember {
  OptimizerGroup spec;
  std::shared_ptr<Optimizer> optimizer;
};

/// Tensors of a checkpoint by key.
using TensorViews = std::map<std::string, safetensors::View>;

class OptimizerSet {
 public:
  /// Makes the experiment's optimizers and gives each parameter to the first group that matches its
  /// role and, where `match` is set, has the expression somewhere in its full name. Throws
  /// dsv3::Error (ExitCode::usage), naming groups and parameters, when a group owns nothing, a
  /// parameter is owned by none, or an optimizer of matrices gets a vector.
  OptimizerSet(const Experiment& experiment, Plugins& plugins, const ParameterStore& store);
  /// The same with optimizers that are made already.
  OptimizerSet(std::vector<OptimizerMember> members, const std::vector<Parameter>& parameters);

  /// Index of the group that owns `parameter`.
  int group_of(const Parameter& parameter) const;
  /// "optimizer 'adamw' (nano.yaml:15:5)", the one that updates the parameter.
  std::string owner_of(const std::string& parameter) const;
  /// What Strategy::ready() takes.
  std::vector<GroupSpec> specs() const;

  /// Makes zeroed state for every range that `strategy` will hand out here. After
  /// Strategy::ready().
  void bind(Strategy& strategy);
  /// One applied update of all groups. `update` counts them from 1; `factor` is the schedule's.
  void step(Strategy& strategy, int64_t update, double factor);

  /// Group name and its learning rate under `factor`.
  std::vector<std::pair<std::string, double>> learning_rates(double factor) const;
  /// Table of the groups: optimizer, learning rate, tensors and parameters; with `verbose` also a
  /// line for each parameter: its optimizer, learning rate, shape and matrices.
  std::string plan(bool verbose = false) const;
  /// Bytes of optimizer state: of this rank after bind(), before it of a single rank.
  int64_t state_bytes() const;

  /// Adds the state as "optimizer/<slot>/<parameter>", pieces of a parameter as ".../<first
  /// element>". The views point into what is returned: keep it until they are written.
  [[nodiscard]] std::vector<at::Tensor> save(TensorViews& views) const;
  /// Overwrites the state of all ranges, bit for bit. Throws dsv3::Error (ExitCode::checkpoint)
  /// when one is missing or has another shape or dtype. Other keys are left alone.
  void load(const TensorViews& views);

 private:
  struct Owned {
    Parameter parameter;
    int group;
  };
  /// State of one range, by slot.
  struct State {
    std::string range;               // as in checkpoint keys
    std::vector<std::string> names;  // of the slots
    std::vector<at::Tensor> slots;
    std::string key(size_t slot) const { return "optimizer/" + names[slot] + "/" + range; }
  };
  using RangeKey = std::pair<std::string, int64_t>;  // parameter, first element

  void assign(const std::vector<Parameter>& parameters);
  /// Throws when groups and parameters do not fit together.
  void check(const std::vector<Parameter>& unowned, const std::vector<bool>& matched) const;

  std::vector<OptimizerMember> members_;
  std::vector<Owned> owned_;             // in the order of declaration
  std::map<std::string, int> group_of_;  // by parameter name
  std::map<RangeKey, State> states_;
};

/// Adds the strategy's master values as "model/<parameter>". Keep what is returned until the views
/// are written.
[[nodiscard]] std::vector<at::Tensor> save_parameters(Strategy& strategy, TensorViews& views);
/// Overwrites the strategy's master values bit for bit and tells it. Errors as OptimizerSet::load.
void load_parameters(Strategy& strategy, const TensorViews& views);

}  // namespace dsv3
