// One decoder layer, and the MTP module that wraps one.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/nn.h>

#include "model/recompute.h"

namespace dsv3 {

/// x + attention(norm(x)), then x + feed_forward(norm(x)); `model.norm.place` moves the norms.
/// Parameters: <prefix>.attention_norm, .attention.*, .feed_forward_norm, .feed_forward.*, and
/// .attention_post_norm, .feed_forward_post_norm where norms follow the sublayers.
class Block : public Component {
 public:
  /// `context.prefix` is e.g. "layers.3".
  Block(const LayerContext& context, const ModelFactory& factory, const std::string& norm_position);
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) const;  // [B, T, D] -> same

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

/// Module k of multi-token prediction (DeepSeek-V3 report, section 2.2): one block on
/// M [norm(embedding of token i+k); norm(h_i)], with its own final norm.
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

}  // namespace dsv3
