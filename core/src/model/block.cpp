#include <ATen/ATen.h>

#include "call/checked.h"
#include "model/parts.h"

namespace dsv3 {

Block::Block(const LayerContext& context, const ModelFactory& factory,
             const std::string& norm_position)
    : Component(context) {
  LayerContext inner = context;
  attention_norms_ = make_norms("attention", norm_position, [&] {
    inner.prefix = context.prefix + ".attention";
    attention_ = factory.attention(inner);
  });
  feed_forward_norms_ = make_norms("feed_forward", norm_position, [&] {
    inner.prefix = context.prefix + ".feed_forward";
    feed_forward_ = factory.feed_forward(inner);
  });
}

// `build` creates the sublayer. It is called between the creation of the two norms, so that
// parameters are declared in the order in which they are used.
Block::Norms Block::make_norms(const std::string& name, const std::string& position,
                               const std::function<void()>& build) {
  const ModelDims& dims = context().dims;
  Norms norms;
  if (position != "post") norms.before.emplace(*this, name + "_norm", dims.hidden, dims.norm_eps);
  build();
  if (position != "pre")
    norms.after.emplace(*this, name + "_post_norm", dims.hidden, dims.norm_eps);
  return norms;
}

template <class Layer>
at::Tensor Block::apply(const Norms& norms, Layer& layer, const at::Tensor& x,
                        const Sequence& seq) {
  at::Tensor y = checked::forward(layer, norms.before ? (*norms.before)(x) : x, seq);
  if (norms.after) y = (*norms.after)(y);
  return x + y;
}

at::Tensor Block::forward(const at::Tensor& x, const Sequence& seq) const {
  const at::Tensor y = apply(attention_norms_, *attention_, x, seq);
  Sequence second = seq;
  second.key.sublayer = 1;
  return apply(feed_forward_norms_, *feed_forward_, y, second);
}

MtpModule::MtpModule(const LayerContext& context, const ModelFactory& factory,
                     const std::string& norm_position, bool embedding_first)
    : Component(context), embedding_first_(embedding_first) {
  const int64_t hidden = context.dims.hidden;
  const double eps = context.dims.norm_eps;
  embedding_norm_ = RmsNorm(*this, "embedding_norm", hidden, eps);
  hidden_norm_ = RmsNorm(*this, "hidden_norm", hidden, eps);
  projection_ = Linear(*this, "projection", 2 * hidden, hidden);
  block_ = std::make_unique<Block>(context, factory, norm_position);
  final_norm_ = RmsNorm(*this, "final_norm", hidden, eps);
}

Tensors MtpModule::forward(const at::Tensor& embedding, const at::Tensor& hidden,
                           const Sequence& seq) const {
  const at::Tensor e = embedding_norm_(embedding), h = hidden_norm_(hidden);
  const at::Tensor joined = embedding_first_ ? at::cat({e, h}, -1) : at::cat({h, e}, -1);
  const at::Tensor raw = block_->forward(projection_(joined), seq);
  return {final_norm_(raw), raw};
}

}  // namespace dsv3
