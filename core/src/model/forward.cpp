// What a model computes: training loss, validation loss, logits. The order of enter and leave is
// the contract with strategies (docs/strategies.md).
#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>

#include "barrier/watch.h"
#include "model/parts.h"

namespace dsv3 {
namespace {

/// The micro-batch on the device, as every layer sees it.
Sequence sequence_of(const Batch& batch, at::Device device) {
  const int64_t rows = batch.tokens.size(0), length = batch.tokens.size(1) - 1;
  Sequence seq;
  if (batch.document_ids.defined()) {
    const at::Tensor ids = batch.document_ids.narrow(1, 0, length);
    const at::Tensor mask = attention_mask(ids);
    if (mask.defined()) seq.mask = mask.to(device);
    seq.positions = positions_of(ids).to(device);
    seq.document_ids = ids.to(device);
  } else {
    seq.positions = at::arange(length, at::TensorOptions().dtype(at::kLong).device(device))
                        .expand({rows, length});
  }
  return seq;
}

/// Inputs of MTP module k: the tokens k + 1 ahead. Beyond the row's end, where no target is, zeros.
at::Tensor tokens_ahead(const at::Tensor& tokens, int64_t ahead) {
  const int64_t length = tokens.size(1) - 1, count = std::max<int64_t>(length + 1 - ahead, 0);
  if (count == length) return tokens.narrow(1, ahead, length);
  at::Tensor result = at::zeros({tokens.size(0), length}, tokens.options());
  if (count > 0) result.narrow(1, 0, count).copy_(tokens.narrow(1, ahead, count));
  return result;
}

void show(const std::string& module, const at::Tensor& output) {
  if (barrier::watch) barrier::watch->passed(module, {}, {output});
}

}  // namespace

std::vector<int64_t> count_targets(const Batch& batch, int64_t mtp_depth) {
  std::vector<int64_t> counts;
  for (int64_t depth = 0; depth <= mtp_depth; ++depth)
    counts.push_back(
        shifted_targets(batch.tokens, batch.document_ids, depth).ge(0).sum().item<int64_t>());
  return counts;
}

void Model::Parts::enter(const Unit& unit, TensorRefs inputs) const {
  if (strategy) strategy->enter(unit.index, inputs);
}

void Model::Parts::leave(const Unit& unit, TensorRefs outputs) const {
  if (strategy) strategy->leave(unit.index, outputs);
}

at::Tensor Model::Parts::embed(const at::Tensor& tokens) const {
  enter(embedding_unit(), {});
  at::Tensor x = at::embedding(embedding, tokens);
  show("embedding", x);
  leave(embedding_unit(), {&x});
  return x;
}

at::Tensor Model::Parts::hidden(const at::Tensor& tokens, const Sequence& seq,
                                std::vector<KvCache>* caches) const {
  const bool recompute = experiment.model.recompute == "full";
  at::Tensor x = embed(tokens);
  for (size_t i = 0; i < blocks.size(); ++i) {
    Sequence own = seq;
    if (caches) own.cache = &caches->at(i);
    const Recomputable forward = [block = blocks[i].get(), own](const Tensors& in, bool again) {
      Sequence seq = own;
      seq.recompute |= again;
      return Tensors{block->forward(in[0], seq)};
    };
    enter(block_unit(i), {&x});
    x = recompute ? run_recomputed(forward, {x})[0] : forward({x}, false)[0];
    show(block_unit(i).name, x);
    leave(block_unit(i), {&x});
  }
  return x;
}

Tensors Model::Parts::mtp_hidden(size_t k, const at::Tensor& tokens, at::Tensor hidden,
                                 const Sequence& seq, bool need_raw) const {
  at::Tensor e = embed(tokens);
  const Recomputable forward = [module = mtp[k].get(), seq, need_raw](const Tensors& in,
                                                                      bool again) {
    Sequence own = seq;
    own.recompute |= again;
    Tensors out = module->forward(in[1], in[0], own);
    if (!need_raw) out.pop_back();
    return out;
  };
  enter(mtp_unit(k), {&hidden, &e});
  Tensors out = experiment.model.recompute == "full" ? run_recomputed(forward, {hidden, e})
                                                     : forward({hidden, e}, false);
  show(mtp_unit(k).name, out.front());
  std::vector<at::Tensor*> outputs;
  for (at::Tensor& tensor : out) outputs.push_back(&tensor);
  leave(mtp_unit(k), outputs);
  return out;
}

void Model::Parts::with_head(TensorRefs inputs, TensorRefs outputs,
                             const std::function<void()>& use) const {
  if (tied()) enter(embedding_unit(), inputs);
  enter(head_unit(), inputs);
  use();
  leave(head_unit(), outputs);
  if (tied()) leave(embedding_unit(), outputs);
}

at::Tensor Model::Parts::project(const at::Tensor& x) const {
  const at::Tensor logits = at::linear(x, head);
  return logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
}

namespace {

/// One call of Model::loss.
class LossRun {
 public:
  LossRun(const Model::Parts& parts, const Batch& batch, const LossScale& scale, bool again)
      : parts_(parts), batch_(batch), scale_(scale), seq_(sequence_of(batch, parts.device)) {
    seq_.training = true;
    seq_.recompute = again;
    seq_.aux_scale = 1.0 / double(std::max<int64_t>(scale.sequences, 1));
    tokens_ = batch.tokens.to(parts.device);
  }

  LossParts run() {
    const at::Tensor hidden = main();
    if (!parts_.mtp.empty()) predict_further(hidden);
    return losses_;
  }

 private:
  /// {loss times `factor` / `divisor`, plain loss / `divisor`} of predicting `depth` + 1 ahead of
  /// x.
  std::pair<at::Tensor, at::Tensor> entropy(const at::Tensor& x, int64_t depth, double factor,
                                            double divisor) {
    divisor = std::max(divisor, 1.0);  // no valid target anywhere: 0, not NaN
    const at::Tensor targets =
        shifted_targets(batch_.tokens, batch_.document_ids, depth).reshape(-1).to(parts_.device);
    const LossOptions& options = parts_.experiment.loss;
    auto [loss, plain] = linear_cross_entropy(x.reshape({-1, x.size(-1)}), parts_.head, targets,
                                              options.z, factor / divisor, options.chunk);
    show("head and loss", loss);
    return {loss, plain / divisor};
  }

  bool feeds_normed() const { return parts_.experiment.mtp.input == "normed"; }

  /// Returns the hidden state that the first MTP module is fed.
  at::Tensor main() {
    const at::Tensor raw = parts_.hidden(tokens_.narrow(1, 0, tokens_.size(1) - 1), seq_);
    at::Tensor x = raw;
    std::vector<at::Tensor*> outputs{&losses_.total};
    if (!parts_.mtp.empty() && feeds_normed()) outputs.push_back(&x);
    parts_.with_head({&x}, outputs, [&] {
      x = parts_.final_norm(x);
      show("final_norm", x);
      std::tie(losses_.total, losses_.main) = entropy(x, 0, 1, scale_.main_targets);
    });
    return feeds_normed() ? x : raw;
  }

  void predict_further(at::Tensor hidden) {
    const MtpOptions& options = parts_.experiment.mtp;
    const size_t depth = parts_.mtp.size();
    for (size_t k = 0; k < depth; ++k) {
      const Tensors out = parts_.mtp_hidden(k, tokens_ahead(tokens_, int64_t(k) + 1), hidden, seq_,
                                            !feeds_normed() && k + 1 < depth);
      const bool own = options.denominator == "own" && k < scale_.mtp_targets.size();
      const double divisor = own ? scale_.mtp_targets[k] : scale_.main_targets;
      at::Tensor x = out.front(), loss, plain;
      parts_.with_head({&x}, {&loss}, [&] {
        std::tie(loss, plain) = entropy(x, int64_t(k) + 1, options.weight / double(depth), divisor);
      });
      losses_.total = losses_.total + loss;
      plain = plain / double(depth);
      losses_.mtp = losses_.mtp.defined() ? losses_.mtp + plain : plain;
      hidden = out.back();
    }
  }

  const Model::Parts& parts_;
  const Batch& batch_;
  const LossScale& scale_;
  Sequence seq_;
  at::Tensor tokens_;  // [B, T + 1] on the device
  LossParts losses_;
};

}  // namespace

LossParts Model::loss(const Batch& batch, const LossScale& scale, bool again) {
  return LossRun(*parts_, batch, scale, again).run();
}

std::pair<double, int64_t> Model::evaluate(const Batch& batch) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  const at::Tensor tokens = batch.tokens.to(parts.device);
  at::Tensor x =
      parts.hidden(tokens.narrow(1, 0, tokens.size(1) - 1), sequence_of(batch, parts.device));
  const at::Tensor targets = shifted_targets(batch.tokens, batch.document_ids, 0).reshape(-1);
  at::Tensor sum;
  parts.with_head({&x}, {&sum}, [&] {
    x = parts.final_norm(x);
    sum = linear_cross_entropy(x.reshape({-1, x.size(-1)}), parts.head, targets.to(parts.device), 0,
                               1, parts.experiment.loss.chunk)
              .second;
  });
  return {sum.item<double>(), targets.ge(0).sum().item<int64_t>()};
}

at::Tensor Model::logits(const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  const at::Tensor input = tokens.to(parts.device);
  Sequence seq;
  seq.positions = at::arange(input.size(1), input.options()).expand_as(input);
  at::Tensor x = parts.hidden(input, seq), result;
  parts.with_head({&x}, {&result}, [&] { result = parts.project(parts.final_norm(x)); });
  return result;
}

at::Tensor Model::next_logits(const at::Tensor& tokens, std::vector<KvCache>& caches) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  if (!caches.empty() && caches.size() != parts.blocks.size())
    throw Error("next_logits got " + std::to_string(caches.size()) + " caches for " +
                std::to_string(parts.blocks.size()) + " layers");
  const at::Tensor given = tokens.to(parts.device);
  const at::Tensor added = given.ge(0).sum(1);  // [B], without the padding
  at::Tensor before = at::zeros_like(added);
  if (!caches.empty()) before = caches.front().lengths().to(parts.device).clone();
  Sequence seq;
  seq.positions = before.unsqueeze(1) + at::arange(given.size(1), given.options());
  at::Tensor x = parts.hidden(given.clamp_min(0), seq, caches.empty() ? nullptr : &caches);
  const bool padded = added.min().item<int64_t>() < given.size(1);
  if (padded)
    for (KvCache& cache : caches) cache.truncate((before + added).to(cache.lengths().device()));
  const at::Tensor last = (added - 1).clamp_min(0).reshape({-1, 1, 1}).expand({-1, 1, x.size(2)});
  x = x.gather(1, last).squeeze(1);
  at::Tensor result;
  parts.with_head({&x}, {&result}, [&] { result = parts.project(parts.final_norm(x)); });
  return result;
}

std::vector<KvCache> Model::make_caches(int64_t batch) const {
  std::vector<KvCache> caches;
  for (size_t i = 0; i < parts_->blocks.size(); ++i)
    caches.emplace_back(batch, parts_->attention[i]->cache_values_per_token(),
                        parts_->embedding.scalar_type(), parts_->device);
  return caches;
}

}  // namespace dsv3
