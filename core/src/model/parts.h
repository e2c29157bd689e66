// The internal parts of a Model: decoder layers, MTP modules, and activation checkpointing.
#pragma once

#include <optional>

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/nn.h>

namespace dsv3 {

using Tensors = std::vector<at::Tensor>;

/// `repeated` is true when the backward pass reruns the function.
using Recomputable = std::function<Tensors(const Tensors& inputs, bool repeated)>;

/// Activation checkpointing: saves the inputs of `fn` instead of its activations and returns
/// fn(inputs). The backward pass reruns fn and differentiates it; gradients of fn's parameters
/// accumulate in this nested backward pass. Bit-identical to fn(inputs) if fn is deterministic.
Tensors run_recomputed(Recomputable fn, const Tensors& inputs);

/// One decoder layer: x + attention(norm(x)), then x + feed_forward(norm(x)); `model.norm.place`
/// changes where the norms are. Parameters: <prefix>.attention_norm, .attention.*,
/// .feed_forward_norm, .feed_forward.*, and .attention_post_norm, .feed_forward_post_norm where
/// norms follow the sublayers.
class Block : public Component {
 public:
  /// `context.prefix` is e.g. "layers.3".
  Block(const LayerContext& context, const ModelFactory& factory, const std::string& norm_position);
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) const;  // [B, T, D] -> [B, T, D]

  const std::shared_ptr<Attention>& attention() const { return attention_; }
  const std::shared_ptr<FeedForward>& feed_forward() const { return feed_forward_; }

 private:
  struct Norms {
    std::optional<RmsNorm> before, after;
  };
  Norms make_norms(const std::string& name, const std::string& position,
                   const std::function<void()>& build);
  template <class Layer>
  static at::Tensor apply(const Norms& norms, Layer& layer, const at::Tensor& x,
                          const Sequence& seq);

  std::shared_ptr<Attention> attention_;
  std::shared_ptr<FeedForward> feed_forward_;
  Norms attention_norms_, feed_forward_norms_;
};

/// MTP module k (multi-token prediction, DeepSeek-V3 report, section 2.2): one block applied to M
/// [norm(embedding of token i+k); norm(h_i)], with its own final norm.
class MtpModule : public Component {
 public:
  MtpModule(const LayerContext& context, const ModelFactory& factory,
            const std::string& norm_position, bool embedding_first);
  /// embedding, hidden [B, T, D] -> {hidden after the final norm, hidden before the final norm}.
  Tensors forward(const at::Tensor& embedding, const at::Tensor& hidden, const Sequence& seq) const;
  const Block& block() const { return *block_; }

 private:
  bool embedding_first_;
  RmsNorm embedding_norm_, hidden_norm_;
  Linear projection_;  // [2D -> D]
  std::unique_ptr<Block> block_;
  RmsNorm final_norm_;
};

/// Parameters [first, last) of the store, which a strategy shards and gathers together.
struct Unit {
  std::string name;
  size_t first = 0, last = 0;
  bool needed_in_backward = true;
  int index = 0;  ///< what Strategy::adopt returned
};

/// Owns the parameters that belong to no layer.
class Trunk : public Component {
 public:
  explicit Trunk(const LayerContext& context) : Component(context) {}
};

/// Position encodings by rotary width.
using Positions = std::map<int64_t, std::shared_ptr<Position>>;

struct Model::Parts {
  Experiment experiment;  // only its model, norm, loss, init and mtp options are used
  int64_t vocab = 0;
  at::Device device = at::kCPU;
  std::shared_ptr<ParameterStore> store = std::make_shared<ParameterStore>();
  std::unique_ptr<Trunk> trunk;
  at::Tensor embedding;  // [V, D]
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<MtpModule>> mtp;
  RmsNorm final_norm;
  at::Tensor head;  // [V, D]; the embedding if the weights are tied
  std::vector<std::shared_ptr<Attention>> attention;
  std::vector<std::shared_ptr<FeedForward>> feed_forward;
  std::shared_ptr<Positions> positions = std::make_shared<Positions>();
  std::vector<Unit> units;  // embedding, blocks, MTP modules, head
  Strategy* strategy = nullptr;

  const Unit& embedding_unit() const { return units.front(); }
  const Unit& block_unit(size_t i) const { return units[1 + i]; }
  const Unit& mtp_unit(size_t k) const { return units[1 + blocks.size() + k]; }
  const Unit& head_unit() const { return units.back(); }
  bool tied() const { return experiment.model.tied_head; }

  UnitSpec spec_of(const Unit& unit, const std::function<int(const Parameter&)>& group_of) const;
  void fill(const Unit& unit, uint64_t seed);
  void enter(const Unit& unit, TensorRefs inputs) const;
  void leave(const Unit& unit, TensorRefs outputs) const;

  /// Embeds tokens [B, T] on the device to [B, T, D].
  at::Tensor embed(const at::Tensor& tokens) const;
  /// Runs the embedding and all blocks: tokens [B, T] -> hidden states [B, T, D] before the final
  /// norm. `caches`: one per block, or null.
  at::Tensor hidden(const at::Tensor& tokens, Sequence seq,
                    std::vector<KvCache>* caches = nullptr) const;
  /// Runs MTP module k on tokens [B, T], which are k + 1 positions ahead, and the previous `hidden`
  /// [B, T, D]. Returns the hidden state after the module's final norm and, if `need_raw`, the one
  /// before it.
  Tensors mtp_hidden(size_t k, const at::Tensor& tokens, const at::Tensor& hidden, Sequence seq,
                     bool need_raw) const;
  /// Runs `forward`, which computes the hidden states of `unit` from `inputs`, between the
  /// strategy's enter and leave calls, and with activation checkpointing if it is enabled. The
  /// values that the unit reads from and adds to `seq.shared` become inputs and outputs, too.
  using UnitForward = std::function<Tensors(const Tensors& inputs, const Sequence& seq)>;
  Tensors run_unit(const Unit& unit, Tensors inputs, const Sequence& seq,
                   const UnitForward& forward) const;
  /// Calls `use`, which computes `outputs` from `inputs`, between the strategy's enter and leave
  /// calls for the head.
  void with_head(TensorRefs inputs, TensorRefs outputs, const std::function<void()>& use) const;
  /// fp32 logits for x [.., D], the output of the final norm.
  at::Tensor project(const at::Tensor& x) const;
};

}  // namespace dsv3
