// The decoder (embedding, blocks, MTP modules, head) and its loss.
#pragma once

#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/data.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/strategy.h>

namespace dsv3 {

/// Divisors for the loss of a training micro-batch; the same for all micro-batches in a step.
struct LossScale {
  double main_targets = 1;  ///< number of valid next-token targets in the step, over all ranks and
                            ///< micro-batches
  std::vector<double> mtp_targets;  ///< number of valid targets at each MTP depth
  int64_t sequences = 1;            ///< number of rows in the step
};

/// What the layers of a training micro-batch receive besides the batch.
struct PassContext {
  StepKey key;  ///< of the micro-batch; `layer` and `sublayer` are ignored
  Metrics metrics = {};
  /// Whether an earlier pass already counted the batch's tokens.
  bool recompute = false;
};

/// Returns the number of valid targets in one micro-batch: for the main model, then for each MTP
/// depth.
std::vector<int64_t> count_targets(const Batch& batch, int64_t mtp_depth);

/// Cross-entropy sums over one micro-batch, divided by the divisors in LossScale; fp32 scalars on
/// the model's device.
struct LossParts {
  at::Tensor total;  ///< differentiable: main loss + weighted MTP loss + z-loss
  at::Tensor main;   ///< detached, without z
  at::Tensor mtp;    ///< detached mean over MTP depths, unweighted; undefined without MTP
};

/// New tokens for a batch of sequences, concatenated row by row without padding.
struct NewTokens {
  std::vector<int64_t> tokens;     ///< N
  std::vector<int64_t> counts;     ///< number of new tokens in each row, possibly 0; they add up to
                                   ///< N
  std::vector<int64_t> logits_at;  ///< indices into `tokens` at which logits are computed
};

/// A model's outputs for new tokens.
struct Extended {
  at::Tensor logits;  ///< fp32 [logits_at, V]
  at::Tensor hidden;  ///< [N, D], input of the next MTP module, taken before or after the final
                      ///< norm (see `mtp.input`); undefined if there is no next module
};

/// Functions that create a model's components: from plugins in a run, from test classes in tests.
/// Layers with an index of at least `dims.layers` belong to MTP modules, which use the last layer's
/// components.
struct ModelFactory {
  std::function<std::shared_ptr<Attention>(const LayerContext&)> attention;
  std::function<std::shared_ptr<FeedForward>(const LayerContext&)> feed_forward;
  std::function<std::shared_ptr<Position>(const PositionContext&)> position;
  /// See LayerContext::rank_group.
  std::function<std::shared_ptr<Communicator>(int64_t size)> rank_group = {};
};
/// Returns functions that create the components configured in the experiment. They keep a reference
/// to `plugins`.
ModelFactory factory_of(const Experiment& experiment, Plugins& plugins);

class Model {
 public:
  /// Builds the model on `device` (meta allocates nothing), with parameters of type `dtype`, which
  /// have no memory until allocate(), initialise() or adopt().
  Model(const Experiment& experiment, int64_t vocab, const ModelFactory& factory, at::Device device,
        at::ScalarType dtype = at::kFloat);
  ~Model();

  /// Gives parameters uninitialised memory, to load weights without a strategy.
  void allocate();

  /// Initialises the weights in place, from the seed and the parameter names, for use without a
  /// strategy.
  void initialise(uint64_t seed);

  /// Initialises the weights from the seed and the parameter names, and passes them to the strategy
  /// one unit (such as a block) at a time. The strategy then owns the parameters. `group_of` maps a
  /// parameter to its optimizer group. `initialised` is called with each parameter before the
  /// strategy takes it over.
  void adopt(Strategy& strategy, uint64_t seed,
             const std::function<int(const Parameter&)>& group_of,
             const std::function<void(const Parameter&)>& initialised = {});

  /// Forward pass of one training micro-batch up to the loss.
  LossParts loss(const Batch& batch, const LossScale& scale, const PassContext& pass = {});
  /// Returns the sum of the main cross-entropy over valid targets and the number of valid targets.
  /// Runs under no_grad.
  std::pair<double, int64_t> evaluate(const Batch& batch);
  /// Appends new tokens during generation to the rows of `caches` (from make_caches), at the
  /// positions after each row's existing tokens. Does not change the caches of MTP modules. Runs
  /// under no_grad.
  Extended extend(const NewTokens& added, std::vector<KvCache>& caches);
  /// Appends new tokens during generation to the cache of MTP module `module` (0 is the first). For
  /// each position t, computes the logits of token t + module + 2 from token t + module + 1 and
  /// `hidden` [N, D]. `hidden` is the output of extend() for the first module, and of the previous
  /// module's extend_mtp() for the others. Runs under no_grad.
  Extended extend_mtp(size_t module, const NewTokens& added, const at::Tensor& hidden,
                      std::vector<KvCache>& caches);
  /// Returns fp32 [B, T] on the host: the cross-entropy in nats of `targets` int64 [B, T], given
  /// the first T tokens of each row. It is 0 where the target is -1. Runs under no_grad.
  at::Tensor token_losses(const Batch& batch, const at::Tensor& targets);
  /// Returns fp32 logits [B, T, V]. Runs under no_grad.
  at::Tensor logits(const at::Tensor& tokens);
  /// Returns fp32 logits of the MTP modules, [depth, B, T, V]. Runs under no_grad. Module k at
  /// position t receives token t + k + 1 and predicts token t + k + 2. Its logits are NaN where the
  /// token it would receive is beyond the row's end.
  at::Tensor mtp_logits(const at::Tensor& tokens);
  /// Returns int64 [parameters] on the model's device: for each parameter, a sum that changes with
  /// any of its bits. Collective, see Strategy::enter().
  at::Tensor checksums();
  /// Returns empty caches, one per layer, with those of MTP modules last.
  std::vector<KvCache> make_caches(int64_t rows) const;

  const ParameterStore& store() const;
  const std::vector<std::shared_ptr<Attention>>& attention() const;       ///< MTP modules last
  const std::vector<std::shared_ptr<FeedForward>>& feed_forward() const;  ///< MTP modules last
  /// Position encodings by rotary width. Layers of the same width share one.
  const std::map<int64_t, std::shared_ptr<Position>>& positions() const;
  int64_t vocab() const;
  int64_t mtp_depth() const;
  /// Returns all units (groups of parameters, such as one block) in the order in which adopt()
  /// passes them to a strategy. Used to estimate memory.
  std::vector<UnitSpec> units(const std::function<int(const Parameter&)>& group_of) const;
  /// Returns the uses of the units in loss(), ordered by Strategy::leave().
  std::vector<UnitUse> uses() const;

  struct Parts;  ///< internal to core/src/model

 private:
  std::unique_ptr<Parts> parts_;
};

/// Fills `tensor` (any device, fp32 or wider) with initial values that depend only on the seed, the
/// parameter's name and the element index (Philox counters). `tensor` contains the parameter's
/// elements from index `first` on, so a shard gets the same values as the corresponding part of the
/// whole parameter.
void initialise(at::Tensor& tensor, const std::string& name, const Init& init, double default_std,
                uint64_t seed, int64_t first = 0);

/// Parameter counts and FLOPs per token, printed by --dry-run and at the start of a run.
struct ModelFigures {
  struct Part {
    std::string name;
    int64_t total = 0;
    double active = 0;
  };
  std::vector<Part> parts;  ///< embedding, attention, feed_forward, norms, head, mtp
  int64_t total = 0, total_without_embeddings = 0;  ///< "without_embeddings" also excludes the head
                                                    ///< and MTP
  double active = 0, active_without_embeddings = 0;
  double flops_per_token = 0;  ///< of the forward and backward pass, computing attention scores for
                               ///< all pairs of tokens; 0 = unknown
  double flops_per_token_causal = 0;  ///< without the scores that the causal mask discards
  std::string flops_unknown;  ///< why FLOPs could not be measured: the error of a component that
                              ///< does not run on the meta device
};
/// Counts the model's parameters, and measures its FLOPs by running a copy of it, made by
/// `factory`, on the meta device.
ModelFigures figures(const Model& model, const Experiment& experiment, const ModelFactory& factory);
/// Like figures(), for an experiment whose model has not been built. Reads the tokenizer if
/// `model.vocab` is auto, and throws a dsv3::Error if that fails.
ModelFigures figures(const Experiment& experiment, Plugins& plugins);

}  // namespace dsv3
