// Interface for strategies, which own parameter storage, gradients and the order of collectives.
#pragma once

#include <functional>

#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// Pointers to a unit's input or output tensors, e.g. {&x, &y}. The strategy may replace the
/// tensors in place, except undefined and no-grad ones.
using TensorRefs = c10::ArrayRef<at::Tensor*>;

struct UnitParam {
  std::string name;
  at::Tensor tensor;  ///< the component's handle; its name is the same on all ranks and in all
                      ///< strategies
  std::vector<int64_t> global_shape, box_offset;  ///< tensor is a box of the global tensor
  int64_t matrices = 1;                           ///< contiguous view [matrices, rows, last dim]
  int group = 0;                                  ///< optimizer group
  bool keep_fp32 = false;
  std::string replicas = "world";
};

struct GroupSpec {
  bool whole_matrices = false;
};

/// Memory and traffic per rank, for dry runs.
struct Cost {
  int64_t bytes_held = 0;  ///< between steps: master values and compute copies, without optimizer
                           ///< state
  int64_t bytes_peak = 0;  ///< during a step: bytes_held, gradients and gathered units
  int64_t bytes_moved_per_step = 0;  ///< sent over the network
};

/// Parameters that are gathered, used and reduced together: the embedding, a block, an MTP module,
/// or the final norm with the head.
struct UnitSpec {
  std::string name;
  std::vector<UnitParam> params;
  bool needed_in_backward = true;
};

struct UpdateTensor {
  Range range;
  /// fp32, [rows, cols] for whole matrices, else 1-D; may be on the host.
  at::Tensor value, grad;
};

struct OwnedTensor {
  Range range;
  at::Tensor value;  ///< fp32 master; the primary ranges of all ranks cover every parameter once
};

struct StrategyContext {
  std::shared_ptr<Communicator> world;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
};

/// All calls come from the training thread, in the same order on all ranks. "C" = collective call.
class Strategy : public Pluggable {
 public:
  ~Strategy() override;
  /// Called after each unit was built and initialised. The strategy takes over its storage and may
  /// free it. Returns the unit's index, in forward order.
  virtual int adopt(UnitSpec unit) = 0;
  /// C. Called after the last adopt(): assigns owners and checks that names and shapes match on all
  /// ranks.
  virtual void ready(const std::vector<GroupSpec>& groups) = 0;
  /// Called before each forward pass in training. Gradients must be reduced after the backward pass
  /// of the `last` micro-batch.
  virtual void begin_microbatch(bool last) = 0;
  /// C. The model calls these around every use of a unit's parameters, in training or not, and
  /// reads the parameters only in between. Calls may repeat and nest across units. They receive all
  /// differentiable inputs and outputs, and may add autograd nodes: in backward(), nodes added by
  /// leave() run before the unit's nodes, and those added by enter() run after them.
  virtual void enter(int unit, TensorRefs inputs) = 0;
  virtual void leave(int unit, TensorRefs outputs) = 0;
  /// C. Computes gradients and sums them over replicas. May throw ExitCode::peer_lost.
  virtual void backward(at::TensorList roots, at::TensorList grads = {}) = 0;
  /// C. Called after the last micro-batch. Returns the global gradient norm as a float64 scalar on
  /// the device, which the host need not wait for. Identical on all ranks. It is not finite if any
  /// gradient is not.
  virtual at::Tensor grad_norm() = 0;
  /// Multiplies all gradients by `factor`, a float64 scalar on the device. A factor of 0 sets them
  /// to 0 even if they are not finite.
  virtual void scale_grads(const at::Tensor& factor) = 0;
  /// C. Calls fn zero or more times with disjoint tensors. fn updates values in place, stores no
  /// reference and calls no collective.
  virtual void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) = 0;
  /// C. Clears gradients, even after a skipped step, and refreshes compute copies. May return
  /// before this is complete.
  virtual void end_step() = 0;
  /// The ranges that update() passes to fn on this rank. They are also the keys of optimizer state.
  /// Valid after ready().
  virtual std::vector<Range> update_ranges(int group) const = 0;
  /// Saving reads owned(). Loading overwrites owned() and then calls loaded() (C). Both are called
  /// only between steps.
  virtual std::vector<OwnedTensor> owned() = 0;
  virtual void loaded() = 0;
  /// Memory per rank and bytes sent per step, computed from meta tensors without starting any
  /// ranks.
  virtual Cost estimate(std::span<const UnitSpec> units, int ranks) const = 0;
};

}  // namespace dsv3
