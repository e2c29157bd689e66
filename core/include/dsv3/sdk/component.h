// Base class of all components with parameters. Components declare parameters instead of creating
// torch::nn modules. This way, the core knows the parameters' roles, initial values, matrices and
// sharding, even on the meta device.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/pluggable.h>
#include <dsv3/sdk/step.h>

namespace dsv3 {

class Position;

/// What a parameter is used for. Optimizer groups select parameters by role. Gains of norms and
/// other vectors around 1 are `norm`; biases and other scalars and vectors are `bias`.
enum class Role { matrix = 1, embedding, head, norm, router, bias };

/// Returns "matrix", "embedding", ..., as written in experiments.
const char* role_name(Role role);

/// Distribution of a parameter's initial values. The values depend only on the seed, the
/// parameter's full name and the element index.
struct Init {
  enum class Kind { normal = 1, constant };
  Kind kind = Kind::normal;
  double std = -1;   ///< standard deviation for `normal`; negative = the model's `init.std`
  double value = 0;  ///< for `constant`

  static Init normal(double std = -1) { return {Kind::normal, std}; }
  static Init constant(double value) { return {Kind::constant, 0, value}; }
  static Init zeros() { return constant(0); }
  static Init ones() { return constant(1); }
};

/// Properties of a parameter that the core needs.
struct ParamSpec {
  Role role = Role::matrix;
  Init init = {};
  /// Number of matrices that the contiguous tensor consists of, as [matrices, rows, last dim], e.g.
  /// 2E for [E, 2F, D] with gate and up stacked. Optimizers such as Muon update each matrix
  /// separately.
  int64_t matrices = 1;
  double active = 1;       ///< fraction of the parameter used per token: top_k / experts
                           ///< for routed experts
  bool keep_fp32 = false;  ///< not cast to the compute dtype
  /// For a layer that splits a parameter over consecutive ranks: the declared tensor is slice
  /// `shard` of `shards` equal slices of the global tensor, along the first dimension. Initial
  /// values and checkpoints are those of the global tensor.
  int64_t shards = 1, shard = 0;
};

/// A declared parameter. Components compute with `tensor`.
struct Parameter {
  std::string name;  ///< full name, e.g. layers.3.attention.q_a.weight
  at::Tensor tensor;
  ParamSpec spec;
};

/// A tensor that no optimizer updates, such as the fp32 router bias. The core saves it and never
/// casts it.
struct Buffer {
  std::string name;
  at::Tensor tensor;
};

/// All parameters and buffers that a model's components declare. Names are unique.
class ParameterStore {
 public:
  /// Creates further parameters on the meta device, to be allocated one unit at a time.
  void defer_allocation() { deferred_ = true; }
  at::Tensor add(std::string name, at::IntArrayRef sizes, const ParamSpec& spec,
                 at::ScalarType dtype, at::Device device);
  at::Tensor add_buffer(std::string name, at::IntArrayRef sizes, at::ScalarType dtype, Init init,
                        at::Device device);
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const std::vector<Buffer>& buffers() const { return buffers_; }

 private:
  void require_new(const std::string& name);

  std::vector<Parameter> parameters_;
  std::vector<Buffer> buffers_;
  std::set<std::string> names_;
  bool deferred_ = false;
};

/// Sizes that are the same for all layers.
struct ModelDims {
  int64_t hidden = 0;    ///< D, hidden size
  int64_t sequence = 0;  ///< T, longest training sequence in tokens
  int64_t layers = 0;    ///< without MTP modules
  double norm_eps = 1e-6;
};

/// Arguments of a layer component's constructor, besides its options.
struct LayerContext {
  ModelDims dims;
  int64_t layer = 0;                  ///< MTP module k is layer `dims.layers + k`
  std::string prefix;                 ///< e.g. "layers.3.attention"
  at::ScalarType dtype = at::kFloat;  ///< dtype of new parameters; float64 in gradient checks
  at::Device device = at::kCPU;       ///< meta in a dry run
  /// Returns the group of `size` consecutive ranks that contains this one, see rank_group_of().
  /// Throws if the number of ranks is not a multiple of `size`. Empty outside a run.
  std::function<std::shared_ptr<Communicator>(int64_t size)> rank_group;
  std::shared_ptr<ParameterStore> store;
  /// Creates the experiment's position encoding for `rotary_dim` features per head (qk_rope_dim in
  /// MLA, head_dim in MHA).
  std::function<std::shared_ptr<Position>(int64_t rotary_dim)> make_position;
};

/// Calls `context.make_position(rotary_dim)`. Adds the prefix `option` to errors, so that they are
/// reported at this attention option, which determined rotary_dim.
std::shared_ptr<Position> position_of(const LayerContext& context, const std::string& option,
                                      int64_t rotary_dim);

/// Returns the group of `size` consecutive ranks with which a layer splits its work; null if `size`
/// is 1 or the layer does not train in a run. Adds the prefix `option` to errors. Collective.
std::shared_ptr<Communicator> rank_group_of(const LayerContext& context, const std::string& option,
                                            int64_t size);

/// Base class of attention and feed-forward plugins.
class Component : public Pluggable {
 public:
  ~Component() override;
  Component(const Component&) = delete;
  Component& operator=(const Component&) = delete;

  /// Declares a parameter "<prefix>.<name>". The core initialises it before its first use.
  at::Tensor parameter(const std::string& name, at::IntArrayRef sizes, const ParamSpec& spec);
  /// Declares a buffer "<prefix>.<name>" and fills it with `init` (zeros or ones).
  at::Tensor buffer(const std::string& name, at::IntArrayRef sizes, at::ScalarType dtype,
                    Init init);

  /// Returns int64 [n] counts since the core last zeroed them, e.g. tokens per expert; undefined =
  /// none. Count only if seq.training and not seq.recompute. The core sums the counts of all layers
  /// over ranks in one call and zeroes them after every step.
  virtual at::Tensor step_counts() { return {}; }
  /// Called after every optimizer step that was not skipped. May change buffers, but no parameters.
  virtual void on_step_end(const StepEnd&) {}

 protected:
  explicit Component(const LayerContext& context) : context_(context) {}
  const LayerContext& context() const { return context_; }

 private:
  std::string full_name(const std::string& name) const;

  LayerContext context_;
};

}  // namespace dsv3
