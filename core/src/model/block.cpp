#include "model/block.h"

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>

namespace dsv3 {

Block::Block(const LayerContext& context, const ModelFactory& factory,
             const std::string& norm_place)
    : Component(context) {
  LayerContext inner = context;
  first_ = make_sublayer("attention", Kind::attention, factory, norm_place, [&] {
    inner.prefix = context.prefix + ".attention";
    attention_ = factory.attention(inner);
  });
  second_ = make_sublayer("feed_forward", Kind::feed_forward, factory, norm_place, [&] {
    inner.prefix = context.prefix + ".feed_forward";
    feed_forward_ = factory.feed_forward(inner);
  });
}

Block::Sublayer Block::make_sublayer(const std::string& name, Kind kind,
                                     const ModelFactory& factory, const std::string& norm_place,
                                     const std::function<void()>& build) {
  const ModelDims& dims = context().dims;
  Sublayer sublayer;
  sublayer.name = context().prefix + "." + name;
  if (factory.origin) sublayer.name += " (" + factory.origin(kind, context().layer) + ")";
  if (norm_place != "post")
    sublayer.before.emplace(*this, name + "_norm", dims.hidden, dims.norm_eps);
  build();
  if (norm_place != "pre")
    sublayer.after.emplace(*this, name + "_post_norm", dims.hidden, dims.norm_eps);
  return sublayer;
}

template <class Layer>
at::Tensor Block::apply(const Sublayer& sublayer, Layer& layer, const at::Tensor& x,
                        const Sequence& seq) {
  at::Tensor y = sublayer.before ? (*sublayer.before)(x) : x;
  try {
    y = layer.forward(y, seq);
  } catch (const Error& error) {
    throw Error(sublayer.name + ": " + error.what(), error.code());
  } catch (const c10::Error& error) {
    throw Error(sublayer.name + ": " + error.what_without_backtrace(), ExitCode::plugin);
  }
  if (y.sizes() != x.sizes() || y.scalar_type() != x.scalar_type())
    throw Error(sublayer.name + ": forward got " + c10::str(x.sizes(), " ", x.scalar_type()) +
                    " and gave back " + c10::str(y.sizes(), " ", y.scalar_type()) +
                    "; shape and dtype must stay",
                ExitCode::plugin);
  if (sublayer.after) y = (*sublayer.after)(y);
  return x + y;
}

at::Tensor Block::forward(const at::Tensor& x, const Sequence& seq) const {
  return apply(second_, *feed_forward_, apply(first_, *attention_, x, seq), seq);
}

MtpModule::MtpModule(const LayerContext& context, const ModelFactory& factory,
                     const std::string& norm_place, bool embedding_first)
    : Component(context), embedding_first_(embedding_first) {
  const int64_t hidden = context.dims.hidden;
  const double eps = context.dims.norm_eps;
  embedding_norm_ = RmsNorm(*this, "embedding_norm", hidden, eps);
  hidden_norm_ = RmsNorm(*this, "hidden_norm", hidden, eps);
  projection_ = Linear(*this, "projection", 2 * hidden, hidden);
  block_ = std::make_unique<Block>(context, factory, norm_place);
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
