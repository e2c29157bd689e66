// Extends sequences during generation: computes a model's outputs for new tokens that follow the
// tokens in its caches.
#include <numeric>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>

#include "call/checked.h"
#include "model/parts.h"

namespace dsv3 {
namespace {

at::Tensor on(at::Device device, const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong).to(device);
}

/// Prepares caches [first, last) for the new tokens and returns the tokens' positions.
Sequence expect_tokens(const NewTokens& added, std::vector<KvCache>& caches, size_t first,
                       size_t last, at::Device device) {
  std::vector<int64_t> positions;
  const std::vector<int64_t>& lengths = caches[first].lengths();
  for (size_t row = 0; row < lengths.size(); ++row) {
    const size_t begin = positions.size();
    positions.resize(begin + size_t(added.counts.at(row)));
    std::iota(positions.begin() + ptrdiff_t(begin), positions.end(), lengths[row]);
  }
  TORCH_CHECK(positions.size() == added.tokens.size(), "extend: ", added.tokens.size(),
              " tokens, but counts add up to ", positions.size());
  for (size_t i = first; i < last; ++i) caches[i].expect(added.counts);
  Sequence seq;
  seq.positions = on(device, positions).unsqueeze(0);
  return seq;
}

}  // namespace

Extended Model::extend(const NewTokens& added, std::vector<KvCache>& caches) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  TORCH_CHECK(caches.size() == parts.attention.size(), "extend: ", caches.size(), " caches for ",
              parts.attention.size(), " layers");
  const Sequence seq = expect_tokens(added, caches, 0, parts.blocks.size(), parts.device);
  at::Tensor x = parts.hidden(on(parts.device, added.tokens).unsqueeze(0), seq, &caches)[0];
  const at::Tensor index = on(parts.device, added.logits_at);
  const bool all_normed = !parts.mtp.empty() && parts.experiment.mtp.input == "normed";
  Extended result;
  at::Tensor normed;
  parts.with_head({&x}, {&result.logits, &normed}, [&] {
    normed = parts.final_norm(all_normed ? x : x.index_select(0, index));
    result.logits = parts.project(all_normed ? normed.index_select(0, index) : normed);
  });
  if (!parts.mtp.empty()) result.hidden = all_normed ? normed : x;
  return result;
}

Extended Model::extend_mtp(size_t module, const NewTokens& added, const at::Tensor& hidden,
                           std::vector<KvCache>& caches) {
  const at::NoGradGuard no_grad;
  const Parts& parts = *parts_;
  const size_t layer = parts.blocks.size() + module;
  TORCH_CHECK(module < parts.mtp.size() && layer < caches.size(), "extend_mtp: no MTP module ",
              module);
  Sequence seq = expect_tokens(added, caches, layer, layer + 1, parts.device);
  seq.cache = &caches[layer];
  const bool last = module + 1 == parts.mtp.size();
  const bool raw = !last && parts.experiment.mtp.input == "raw";
  const Tensors out = parts.mtp_hidden(module, on(parts.device, added.tokens).unsqueeze(0),
                                       hidden.unsqueeze(0), seq, raw);
  at::Tensor x = out.front()[0].index_select(0, on(parts.device, added.logits_at));
  Extended result;
  parts.with_head({&x}, {&result.logits}, [&] { result.logits = parts.project(x); });
  if (!last) result.hidden = out.back()[0];
  return result;
}

std::vector<KvCache> Model::make_caches(int64_t rows) const {
  std::vector<KvCache> caches;
  for (const std::shared_ptr<Attention>& attention : parts_->attention)
    caches.emplace_back(
        rows,
        checked::number(*attention, "cache_values_per_token", &Attention::cache_values_per_token),
        parts_->embedding.scalar_type(), parts_->device,
        call(*attention, "cache_window", &Attention::cache_window));
  return caches;
}

}  // namespace dsv3
