// The decoder: embedding, blocks, MTP modules, head; and its loss.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/data.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/strategy.h>

namespace dsv3 {

/// What one training micro-batch is divided by; the same for all micro-batches of a step.
struct LossScale {
  double main_targets = 1;          ///< valid main targets of the step, all ranks and micro-batches
  std::vector<double> mtp_targets;  ///< the same for each MTP depth
  int64_t sequences = 1;            ///< rows of the step
};

/// Valid targets of one micro-batch: main first, then a number for each MTP depth.
std::vector<int64_t> count_targets(const Batch& batch, int64_t mtp_depth);

/// Sums of cross-entropy over this micro-batch, already divided; fp32 scalars on the device.
struct LossParts {
  at::Tensor total;  ///< differentiable: main + weighted MTP (+ z)
  at::Tensor main;   ///< detached, without z
  at::Tensor mtp;    ///< detached mean over depths, unweighted; undefined without MTP
};

/// Where a model gets its components. A layer of `dims.layers` or more is an MTP module's, built as
/// the last layer is. Plugins stand behind it in a run; tests put their own classes in.
struct ModelFactory {
  std::function<std::shared_ptr<Attention>(const LayerContext&)> attention;
  std::function<std::shared_ptr<FeedForward>(const LayerContext&)> feed_forward;
  std::function<std::shared_ptr<Position>(const PositionContext&)> position;
};
/// Components as the experiment names them. Keeps a reference to `plugins`.
ModelFactory factory_of(const Experiment& experiment, Plugins& plugins);

class Model {
 public:
  /// Builds on `device` (meta: nothing allocated) with parameters of `dtype`, uninitialised.
  Model(const Experiment& experiment, int64_t vocab, Plugins& plugins, at::Device device,
        at::ScalarType dtype = at::kFloat, ParallelContext parallel = {});
  Model(const Experiment& experiment, int64_t vocab, const ModelFactory& factory, at::Device device,
        at::ScalarType dtype = at::kFloat, ParallelContext parallel = {});
  ~Model();

  /// Fills first values from (seed, name) in place, for use without a strategy.
  void initialise(uint64_t seed);

  /// Fills first values unit by unit from (seed, name) and hands each unit to the strategy.
  /// `group_of` maps a parameter to its optimizer group. After it, parameters live in the strategy.
  void adopt(Strategy& strategy, uint64_t seed,
             const std::function<int(const Parameter&)>& group_of);

  /// Forward of one training micro-batch up to the loss. `again`: the batch was seen before, so
  /// layers count nothing.
  LossParts loss(const Batch& batch, const LossScale& scale, bool again = false);
  /// Sum of the main cross-entropy over valid targets, no grad: {sum, targets}.
  std::pair<double, int64_t> evaluate(const Batch& batch);
  /// fp32 logits [B, V] of each row's last token, no grad. tokens int64 [B, T], -1 = padding on the
  /// right; they are appended to `caches` (one a layer; empty = none), and positions go on from the
  /// caches' lengths.
  at::Tensor next_logits(const at::Tensor& tokens, std::vector<KvCache>& caches);
  /// fp32 logits [B, T, V], no grad.
  at::Tensor logits(const at::Tensor& tokens);
  std::vector<KvCache> make_caches(int64_t batch) const;

  const ParameterStore& store() const;
  const std::vector<std::shared_ptr<Attention>>& attention() const;       ///< MTP modules last
  const std::vector<std::shared_ptr<FeedForward>>& feed_forward() const;  ///< MTP modules last
  int64_t vocab() const;
  /// Units in the order of adopt(), for estimates.
  std::vector<UnitSpec> units(const std::function<int(const Parameter&)>& group_of) const;

  struct Parts;  ///< of core/src/model only

 private:
  std::unique_ptr<Parts> parts_;
};

/// Fills `tensor` (any device, fp32 or wider) for (seed, name): a value depends on seed, name and
/// its index only (Philox counters). `tensor` holds the parameter's elements from `first` on, so
/// that a piece of a sharded parameter gets the values it has in the whole.
void initialise(at::Tensor& tensor, const std::string& name, const Init& init, double default_std,
                uint64_t seed, int64_t first = 0);

/// Parameter counts and work of one token, printed by --dry-run and by the start of a run.
struct ModelFigures {
  struct Part {
    std::string name;
    int64_t total = 0;
    double active = 0;
  };
  std::vector<Part> parts;  ///< embedding, attention, feed_forward, norms, head, mtp
  int64_t total = 0, total_without_embeddings = 0;  ///< "without": no embedding, head and MTP
  double active = 0, active_without_embeddings = 0;
  double flops_per_token = 0;  ///< forward + backward, non-causal attention
  double flops_per_token_causal = 0;
  int64_t saved_values_per_token = 0;
};
ModelFigures figures(const Model& model, const Experiment& experiment);

}  // namespace dsv3
