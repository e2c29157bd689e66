// Interface of strategies: who owns parameter storage, gradients and the order of collectives.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/optimizer.h>

namespace dsv3 {

/// Pointers to the tensors that cross a unit's border, e.g. {&x, &y}. Replaced in place; undefined
/// and no-grad entries are left alone.
using TensorRefs = c10::ArrayRef<at::Tensor*>;

struct UnitParam {
  std::string name;
  at::Tensor tensor;  ///< the component's own handle; name equal on all ranks and strategies
  std::vector<int64_t> global_shape, box_offset;  ///< tensor = a box of the global one
  int64_t matrices = 1;                           ///< contiguous view [matrices, rows, last dim]
  int group = 0;                                  ///< optimizer group
  bool keep_fp32 = false;
  std::string replicas = "world";
};

struct GroupSpec {
  bool whole_matrices = false;
};

/// Bytes a rank; for dry runs.
struct Cost {
  int64_t bytes_held = 0;  ///< between steps: master, compute copy; without optimizer state
  int64_t bytes_peak = 0;  ///< in a step: held plus gradients and gathered units
  int64_t bytes_moved_per_step = 0;  ///< sent over the network
};

/// A run of parameters that are gathered, used and reduced together: embedding; each block; MTP
/// modules; final norm with head.
struct UnitSpec {
  std::string name;
  std::vector<UnitParam> params;
  bool needed_in_backward = true;
};

struct UpdateTensor {
  Range range;
  at::Tensor value,
      grad;  ///< fp32; [rows, cols] for whole matrices, else 1-D; may live on the host
};

struct OwnedTensor {
  Range range;
  at::Tensor value;  ///< fp32 master; the primary ranges of all ranks tile every parameter once
};

struct StrategyContext {
  std::shared_ptr<Communicator> world;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
};

/// All calls come from the training thread, in the same order on all ranks. "C" = collective.
class Strategy {
 public:
  virtual ~Strategy();
  /// Core, after building and initialising one unit. Storage moves here and may be gone on return.
  /// Returns the unit's index (= forward order).
  virtual int adopt(UnitSpec unit) = 0;
  /// C. After the last adopt: owners, hash check of names and shapes.
  virtual void ready(const std::vector<GroupSpec>& groups) = 0;
  /// Before each training forward. `last`: gradients must end up reduced.
  virtual void begin_microbatch(bool last) = 0;
  /// C. Model loop, around every use of a unit's parameters, training or not; only in between may
  /// they be read. Enter may be repeated and nested across units; pass all differentiable inputs
  /// and outputs. Adds autograd nodes whose callbacks run in backward(): leave's before and enter's
  /// after the unit's.
  virtual void enter(int unit, TensorRefs inputs) = 0;
  virtual void leave(int unit, TensorRefs outputs) = 0;
  /// C. Sums gradients over replicas. May throw peer-lost.
  virtual void backward(at::TensorList roots, at::TensorList grads = {}) = 0;
  /// C. After the last micro-batch; global and equal on all ranks. Not finite when any gradient is
  /// not.
  virtual double grad_norm() = 0;
  virtual void scale_grads(double factor) = 0;
  /// C. Calls fn zero or more times with disjoint tensors; fn changes values in place, keeps no
  /// reference, calls no collective.
  virtual void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) = 0;
  /// C. Drops gradients (also of a skipped step), refreshes compute copies; may return early.
  virtual void end_step() = 0;
  /// What update() will hand out here; valid from ready(). Key of optimizer state.
  virtual std::vector<Range> update_ranges(int group) const = 0;
  /// Save reads and load overwrites owned(), then loaded() (C). Between steps only.
  virtual std::vector<OwnedTensor> owned() = 0;
  virtual void loaded() = 0;
  /// Bytes a rank and moved a step; on meta tensors, without ranks.
  virtual Cost estimate(std::span<const UnitSpec> units, int ranks) const = 0;
};

}  // namespace dsv3
