// A model's computations: training loss, validation loss, logits. The order of the enter and leave
// calls is part of the contract with strategies (dsv3/sdk/strategy.h).
#include <limits>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>

#include "call/checked.h"
#include "model/device_batch.h"
#include "model/parts.h"

namespace dsv3 {
namespace {

/// maximum number of fp32 logits that token_losses has in memory at once (64 MiB)
constexpr int64_t kLogitsAtOnce = int64_t{16} << 20;

/// Input tokens of MTP module `ahead` - 1: the tokens `ahead` positions later, with zeros past the
/// end of the row.
at::Tensor tokens_ahead(const at::Tensor& tokens, int64_t ahead) {
  const int64_t length = tokens.size(1) - 1, count = std::max<int64_t>(length + 1 - ahead, 0);
  if (count == length) return tokens.narrow(1, ahead, length);
  at::Tensor result = at::zeros({tokens.size(0), length}, tokens.options());
  if (count > 0) result.narrow(1, 0, count).copy_(tokens.narrow(1, ahead, count));
  return result;
}

void show(const std::string& module, const at::Tensor& output) {
  if (Watch* watch = Watch::active) watch->passed(module, {}, {output});
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
  if (strategy) call(*strategy, "enter", &Strategy::enter, unit.index, inputs);
}

void Model::Parts::leave(const Unit& unit, TensorRefs outputs) const {
  if (strategy) call(*strategy, "leave", &Strategy::leave, unit.index, outputs);
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
    Sequence layer_seq = seq;
    if (caches) layer_seq.cache = &caches->at(i);
    const Recomputable forward = [block = blocks[i].get(), layer_seq](const Tensors& in,
                                                                      bool repeated) mutable {
      layer_seq.recompute |= repeated;
      return Tensors{block->forward(in[0], layer_seq)};
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
  const Recomputable forward = [module = mtp[k].get(), seq = seq, need_raw](const Tensors& in,
                                                                            bool repeated) mutable {
    seq.recompute |= repeated;
    Tensors out = module->forward(in[1], in[0], seq);
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

/// Hidden states [B, T, D] of the main model for `batch`'s first T tokens.
at::Tensor hidden_of(const Model::Parts& parts, const Batch& batch) {
  const DeviceBatch moved = to_device(batch, 0, parts.device);
  return parts.hidden(moved.tokens.narrow(1, 0, moved.tokens.size(1) - 1), moved.seq);
}

}  // namespace

LossParts Model::loss(const Batch& batch, const LossScale& scale, bool recompute) {
  const Parts& parts = *parts_;
  const MtpOptions& mtp = parts.experiment.mtp;
  const size_t depth = parts.mtp.size();
  const bool normed = mtp.input == "normed";
  DeviceBatch moved = to_device(batch, int64_t(depth) + 1, parts.device);
  const at::Tensor& tokens = moved.tokens;  // [B, T + 1]
  Sequence& seq = moved.seq;
  seq.training = true;
  seq.recompute = recompute;
  seq.aux_scale = 1.0 / double(std::max<int64_t>(scale.sequences, 1));

  // Predicts the token `ahead` + 1 positions after each position of x. Returns the loss, multiplied
  // by `factor`, and the loss without z-loss, both divided by `divisor`.
  const auto entropy = [&](const at::Tensor& x, int64_t ahead, double factor, double divisor) {
    divisor = std::max(divisor, 1.0);  // 0 instead of NaN if there is no valid target
    const at::Tensor& targets = moved.targets[ahead];
    const LossOptions& options = parts.experiment.loss;
    const auto [loss, plain] =
        linear_cross_entropy(x.reshape({-1, x.size(-1)}), parts.head, targets, options.z,
                             factor / divisor, options.chunk.value_or(0));
    show("head and loss", loss);
    return std::pair(loss, plain / divisor);
  };

  LossParts losses;
  at::Tensor hidden;  // input of the next MTP module
  {
    const at::Tensor raw = parts.hidden(tokens.narrow(1, 0, tokens.size(1) - 1), seq);
    at::Tensor x = raw;
    std::vector<at::Tensor*> outputs{&losses.total};
    if (depth > 0 && normed) outputs.push_back(&x);
    parts.with_head({&x}, outputs, [&] {
      x = parts.final_norm(x);
      show("final_norm", x);
      std::tie(losses.total, losses.main) = entropy(x, 0, 1, scale.main_targets);
    });
    hidden = normed ? x : raw;
  }
  for (size_t k = 0; k < depth; ++k) {
    const Tensors out = parts.mtp_hidden(k, tokens_ahead(tokens, int64_t(k) + 1), hidden, seq,
                                         !normed && k + 1 < depth);
    const bool by_depth = mtp.denominator == "own" && k < scale.mtp_targets.size();
    const double divisor = by_depth ? scale.mtp_targets[k] : scale.main_targets;
    at::Tensor x = out.front(), loss, plain;
    parts.with_head({&x}, {&loss}, [&] {
      std::tie(loss, plain) = entropy(x, int64_t(k) + 1, mtp.weight / double(depth), divisor);
    });
    losses.total = losses.total + loss;
    plain = plain / double(depth);
    losses.mtp = losses.mtp.defined() ? losses.mtp + plain : plain;
    hidden = out.back();
  }
  return losses;
}

std::pair<double, int64_t> Model::evaluate(const Batch& batch) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  const DeviceBatch moved = to_device(batch, 1, parts.device);
  at::Tensor x = parts.hidden(moved.tokens.narrow(1, 0, moved.tokens.size(1) - 1), moved.seq);
  at::Tensor sum;
  parts.with_head({&x}, {&sum}, [&] {
    x = parts.final_norm(x);
    sum = linear_cross_entropy(x.reshape({-1, x.size(-1)}), parts.head, moved.targets[0], 0, 1,
                               parts.experiment.loss.chunk.value_or(0))
              .second;
  });
  return {sum.item<double>(), count_targets(batch, 0)[0]};
}

at::Tensor Model::token_losses(const Batch& batch, const at::Tensor& targets) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  at::Tensor x = hidden_of(parts, batch);
  const at::Tensor flat = targets.reshape(-1).to(parts.device);
  const at::Tensor valid = flat.ge(0).nonzero().squeeze(1);
  const at::Tensor index = flat.index_select(0, valid).unsqueeze(1);
  at::Tensor losses = at::zeros(flat.sizes(), x.options().dtype(at::kFloat));
  parts.with_head({&x}, {&losses}, [&] {
    x = parts.final_norm(x).reshape({-1, x.size(-1)}).index_select(0, valid);
    const int64_t rows = std::max<int64_t>(1, kLogitsAtOnce / parts.vocab);
    for (int64_t begin = 0; begin < x.size(0); begin += rows) {
      const int64_t count = std::min(rows, x.size(0) - begin);
      const at::Tensor logits = parts.project(x.narrow(0, begin, count));
      const at::Tensor picked = logits.gather(1, index.narrow(0, begin, count)).squeeze(1);
      losses.index_copy_(0, valid.narrow(0, begin, count),
                         (logits.logsumexp(1) - picked).to(at::kFloat));
    }
  });
  return losses.view_as(targets).cpu();
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

at::Tensor Model::mtp_logits(const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  const int64_t length = tokens.size(1);
  const bool normed = parts.experiment.mtp.input == "normed";
  // Append a placeholder token to get rows [B, T + 1] as in training. Its logits are set to NaN
  // below.
  Batch batch;
  batch.tokens = at::cat({tokens, at::zeros_like(tokens.narrow(1, 0, 1))}, 1).to(parts.device);
  const Sequence seq = to_device(batch, 0, parts.device).seq;
  at::Tensor hidden = hidden_of(parts, batch);
  if (normed) parts.with_head({&hidden}, {&hidden}, [&] { hidden = parts.final_norm(hidden); });
  std::vector<at::Tensor> logits;
  for (size_t k = 0; k < parts.mtp.size(); ++k) {
    const int64_t ahead = int64_t(k) + 1;
    const Tensors out =
        parts.mtp_hidden(k, tokens_ahead(batch.tokens, ahead), hidden, seq, !normed);
    at::Tensor x = out.front(), result;
    parts.with_head({&x}, {&result}, [&] { result = parts.project(x); });
    const int64_t invalid = std::min(ahead, length);
    result.narrow(1, length - invalid, invalid).fill_(std::numeric_limits<double>::quiet_NaN());
    logits.push_back(result);
    hidden = out.back();
  }
  return at::stack(logits);
}

}  // namespace dsv3
