// Interface for strategies, which own parameter storage, gradients and the order of collectives.
#pragma once

#include <functional>

#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/metrics.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// Pointers to tensors, such as {&x, &y}, that are the inputs or outputs of a computation with the
/// parameters of a unit (see UnitSpec). The strategy may replace these tensors in place, except
/// undefined ones and those that do not require grad.
using TensorRefs = c10::ArrayRef<at::Tensor*>;

struct UnitParam {
  std::string name;                               ///< the same on all ranks and in all strategies
  at::Tensor tensor;                              ///< the tensor with which the component computes
  std::vector<int64_t> global_shape, box_offset;  ///< `tensor` is the slice of the global tensor
                                                  ///< that starts at box_offset
  int64_t matrices = 1;                           ///< number of matrices in the contiguous tensor,
                                                  ///< viewed as [matrices, rows, last dim]
  int group = 0;                                  ///< optimizer group
  bool keep_fp32 = false;
  /// Number of consecutive ranks that hold different slices of the global tensor. Ranks whose
  /// numbers are equal modulo `shards` hold the same slice, and gradients are summed over them.
  int64_t shards = 1;
};

struct GroupSpec {
  bool whole_matrices = false;
};

/// Memory and network traffic of a rank, for dry runs.
struct Cost {
  /// On the device between steps: master weights and copies in the compute dtype, without optimizer
  /// state.
  int64_t bytes_held = 0;
  /// On the device during a backward pass, without activations: bytes_held, gradients and gathered
  /// parameters.
  int64_t bytes_peak = 0;
  /// On the device during update(): bytes_held, gradients and exchanged values. Values below
  /// bytes_peak have no effect.
  int64_t bytes_update = 0;
  int64_t bytes_moved_per_step = 0;  ///< bytes sent to other ranks, with one micro-batch per step
  int64_t bytes_moved_per_microbatch = 0;  ///< by each further micro-batch
  int64_t host_bytes = 0;                  ///< offloaded values in host memory
  bool state_on_host = false;              ///< whether optimizer state is in host memory
};

/// A unit: parameters that a strategy gathers, uses and reduces together. The units of a model are
/// the embedding, each block, each MTP module, and the final norm with the head.
struct UnitSpec {
  std::string name;
  std::vector<UnitParam> params;
  bool needed_in_backward = true;
};

/// A call of enter(), and the call of leave() that belongs to it.
struct UnitUse {
  size_t unit = 0;
  /// Whether enter() receives inputs that may require grad, so that the backward pass reports when
  /// it has finished this use.
  bool has_inputs = true;
};

/// What a strategy has to know to estimate its costs.
struct ModelPlan {
  std::vector<UnitSpec> units;  ///< on the meta device, with the slices of rank 0
  std::vector<UnitUse> uses;    ///< in a forward pass in training, ordered by leave()
  std::vector<GroupSpec> groups;
};

struct UpdateTensor {
  Range range;
  /// fp32, [rows, cols] for whole matrices, else one-dimensional. The tensors may be in host
  /// memory.
  at::Tensor value, grad;
};

struct OwnedTensor {
  Range range;
  at::Tensor value;  ///< fp32 master weights; together, the primary ranges of all ranks cover every
                     ///< parameter exactly once
};

struct StrategyContext {
  std::shared_ptr<Communicator> world;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
  Metrics metrics = {};
};

/// Calls come from the training thread, in the same order on all ranks. Calls marked "Collective"
/// communicate with the other ranks.
class Strategy : public Pluggable {
 public:
  ~Strategy() override;
  /// Called for each unit after its parameters were created and initialised. The strategy takes
  /// over their storage and may free it. Returns the unit's index, in forward order.
  virtual int adopt(UnitSpec unit) = 0;
  /// Collective. Called after the last adopt(). Decides which rank owns which values. Names, shapes
  /// and groups are the same on all ranks.
  virtual void ready(const std::vector<GroupSpec>& groups) = 0;
  /// Called before each forward pass in training. `last` marks a step's last micro-batch: after its
  /// backward pass, gradients must be reduced over ranks.
  virtual void begin_microbatch(bool last) = 0;
  /// Collective. The model calls enter() before and leave() after every use of a unit's parameters,
  /// in training or not, and reads the parameters only in between. Calls may repeat, and calls for
  /// different units may nest. The calls receive all differentiable inputs and outputs, and may add
  /// autograd nodes. In backward(), nodes added by leave() run before the unit's own nodes, and
  /// those added by enter() run after them.
  virtual void enter(int unit, TensorRefs inputs) = 0;
  virtual void leave(int unit, TensorRefs outputs) = 0;
  /// Collective. Computes gradients and sums them over replicas. May throw an Error with
  /// ExitCode::peer_lost.
  virtual void backward(at::TensorList roots, at::TensorList grads = {}) = 0;
  /// Collective. Called after the last micro-batch. Returns the global gradient norm, identical on
  /// all ranks, as a float64 scalar on the device, so the host need not wait for it. It is not
  /// finite if any gradient is not finite.
  virtual at::Tensor grad_norm() = 0;
  /// Multiplies all gradients by `factor`, a float64 scalar on the device. A factor of 0 sets them
  /// to 0 even if they are not finite.
  virtual void scale_grads(const at::Tensor& factor) = 0;
  /// Collective. Calls `fn` zero or more times with disjoint tensors. `fn` updates the values in
  /// place, keeps no references and calls no collectives. Also called between steps, to exchange
  /// the values; the gradients are then undefined or zero.
  virtual void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) = 0;
  /// Collective. Clears gradients, even after a skipped step, and refreshes the tensors that
  /// components compute with. May return before this is complete.
  virtual void end_step() = 0;
  /// Returns the ranges that update() passes to `fn` on this rank. The core also identifies
  /// optimizer state by them. Valid after ready().
  virtual std::vector<Range> update_ranges(int group) const = 0;
  /// To save, the core reads owned(). To load, it overwrites owned() and then calls loaded(), which
  /// is collective. Both happen only between steps.
  virtual std::vector<OwnedTensor> owned() = 0;
  virtual void loaded() = 0;
  /// Returns the memory and the bytes sent per step of rank 0 of `ranks`, without starting any
  /// ranks.
  virtual Cost estimate(const ModelPlan& plan, int ranks) const = 0;
};

}  // namespace dsv3
