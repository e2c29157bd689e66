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

/// New tokens of a batch of texts, row behind row, without padding.
struct NewTokens {
  std::vector<int64_t> tokens;  ///< N
  std::vector<int64_t> counts;  ///< of each row, 0 allowed; their sum is N
  std::vector<int64_t> wanted;  ///< places in `tokens` whose logits are asked for; may be empty
};

/// What a model says about new tokens.
struct Extended {
  at::Tensor logits;  ///< fp32 [wanted, V]
  at::Tensor hidden;  ///< [N, D] for the next MTP module, normed or raw as `mtp.input` says;
                      ///< undefined when there is none
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
  /// Generation, no grad: appends new tokens to the rows of `caches` (of make_caches); positions go
  /// on from what a row holds. MTP modules' caches are left alone.
  Extended extend(const NewTokens& added, std::vector<KvCache>& caches);
  /// The same by MTP module `module`, 0 the first, and its cache: token t + module + 1 and what the
  /// module before (extend for the first) said of position t lead to logits of token t + module +
  /// 2. `hidden` [N, D].
  Extended extend_mtp(size_t module, const NewTokens& added, const at::Tensor& hidden,
                      std::vector<KvCache>& caches);
  /// fp32 [B, T] on the host: cross-entropy in nats of `targets` int64 [B, T] (-1 = not asked: 0)
  /// behind the first T tokens of each row, no grad.
  at::Tensor token_losses(const Batch& batch, const at::Tensor& targets);
  /// fp32 logits [B, T, V], no grad.
  at::Tensor logits(const at::Tensor& tokens);
  /// fp32 logits of the MTP modules [depth, B, T, V], no grad. Module k at position t sees token
  /// t + k + 1 and predicts token t + k + 2; where that input is beyond the row's end: NaN.
  at::Tensor mtp_logits(const at::Tensor& tokens);
  /// Empty caches, one a layer, MTP modules last.
  std::vector<KvCache> make_caches(int64_t rows) const;

  const ParameterStore& store() const;
  const std::vector<std::shared_ptr<Attention>>& attention() const;       ///< MTP modules last
  const std::vector<std::shared_ptr<FeedForward>>& feed_forward() const;  ///< MTP modules last
  int64_t vocab() const;
  int64_t mtp_depth() const;
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
