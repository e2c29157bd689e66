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

std::vector<at::Tensor*> references(Tensors& tensors) {
  std::vector<at::Tensor*> pointers;
  for (at::Tensor& tensor : tensors) pointers.push_back(&tensor);
  return pointers;
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

Tensors Model::Parts::run_unit(const Unit& unit, Tensors inputs, const Sequence& seq,
                               const UnitForward& forward) const {
  const size_t unit_inputs = inputs.size();
  std::vector<std::string> names;
  for (const auto& [name, value] : seq.shared->all()) {
    names.push_back(name);
    inputs.push_back(value);
  }
  const auto added = std::make_shared<std::vector<std::string>>();  // shared values set by the unit
  // The backward pass may call this again, so it depends only on its inputs.
  const Recomputable compute = [=](const Tensors& in, bool repeated) {
    Sequence inner = seq;
    inner.shared = std::make_shared<SharedValues>();
    for (size_t i = 0; i < names.size(); ++i) inner.shared->set(names[i], in[unit_inputs + i]);
    const SharedValues before = *inner.shared;
    if (repeated) {
      inner.recompute = true;
      inner.metrics = {};
    }
    Tensors out = forward(Tensors(in.begin(), in.begin() + ptrdiff_t(unit_inputs)), inner);
    added->clear();
    for (const auto& [name, value] : inner.shared->all()) {
      if (value.is_same(before.find(name))) continue;
      added->push_back(name);
      out.push_back(value);
    }
    return out;
  };
  enter(unit, references(inputs));
  Tensors out = experiment.model.recompute == "full" ? run_recomputed(compute, inputs)
                                                     : compute(inputs, false);
  show(unit.name, out.front());
  leave(unit, references(out));
  for (auto name = added->rbegin(); name != added->rend(); ++name) {
    seq.shared->set(*name, out.back());
    out.pop_back();
  }
  return out;
}

at::Tensor Model::Parts::hidden(const at::Tensor& tokens, Sequence seq,
                                std::vector<KvCache>* caches) const {
  seq.shared = std::make_shared<SharedValues>();
  at::Tensor x = embed(tokens);
  for (size_t i = 0; i < blocks.size(); ++i) {
    seq.key.layer = int64_t(i);
    if (caches) seq.cache = &caches->at(i);
    x = run_unit(block_unit(i), {x}, seq,
                 [block = blocks[i].get()](const Tensors& in, const Sequence& layer_seq) {
                   return Tensors{block->forward(in[0], layer_seq)};
                 })[0];
  }
  return x;
}

Tensors Model::Parts::mtp_hidden(size_t k, const at::Tensor& tokens, const at::Tensor& hidden,
                                 Sequence seq, bool need_raw) const {
  // During generation, an MTP module runs without the main model, so it never sees its values.
  seq.shared = std::make_shared<SharedValues>();
  seq.key.layer = int64_t(blocks.size() + k);
  return run_unit(mtp_unit(k), {hidden, embed(tokens)}, seq,
                  [module = mtp[k].get(), need_raw](const Tensors& in, const Sequence& layer_seq) {
                    Tensors out = module->forward(in[1], in[0], layer_seq);
                    if (!need_raw) out.pop_back();
                    return out;
                  });
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

LossParts Model::loss(const Batch& batch, const LossScale& scale, const PassContext& pass) {
  const Parts& parts = *parts_;
  const MtpOptions& mtp = parts.experiment.mtp;
  const size_t depth = parts.mtp.size();
  const bool normed = mtp.input == "normed";
  DeviceBatch moved = to_device(batch, int64_t(depth) + 1, parts.device);
  const at::Tensor& tokens = moved.tokens;  // [B, T + 1]
  Sequence& seq = moved.seq;
  seq.training = true;
  seq.recompute = pass.recompute;
  seq.key = pass.key;
  seq.metrics = pass.metrics;
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
