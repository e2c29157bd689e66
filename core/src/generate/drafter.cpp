#include "generate/drafter.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace dsv3 {

void Drafter::Input::append(const at::Tensor& more) {
  hidden = hidden.defined() && hidden.size(0) > 0 ? at::cat({hidden, more}) : more;
}

void Drafter::Input::crop(int64_t begin, int64_t last) {
  if (!hidden.defined()) return;
  begin = std::clamp(begin, first, end());
  last = std::clamp(last, begin, end());
  // Copied to free the rest's memory.
  hidden = hidden.narrow(0, begin - first, last - begin).clone();
  first = begin;
}

Drafter::Drafter(Model& model, std::vector<KvCache>& caches, size_t layers, int64_t rows)
    : model_(model),
      caches_(caches),
      layers_(layers),
      depth_(caches.size() - layers),
      inputs_(size_t(rows), std::vector<Input>(depth_)) {}

void Drafter::add(size_t row, const at::Tensor& hidden) {
  inputs_[row][0].append(hidden);
}

Drafter::Drafted Drafter::run(size_t module, const std::vector<size_t>& rows,
                              const std::vector<std::vector<int32_t>>& texts, int64_t without) {
  const KvCache& cache = caches_[layers_ + module];
  NewTokens added;
  added.counts.assign(texts.size(), 0);
  std::vector<at::Tensor> hidden;
  Drafted result;
  for (size_t row = 0; row < texts.size(); ++row) {
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) continue;
    const Input& input = inputs_[row][module];
    const int64_t begin = cache.lengths()[row], ahead = int64_t(module) + 1;
    const int64_t known = int64_t(texts[row].size()) - without;
    const int64_t end = std::min(input.end(), known - ahead);
    if (end <= begin) continue;
    added.counts[row] = end - begin;
    hidden.push_back(input.hidden.narrow(0, begin - input.first, end - begin));
    const auto first = texts[row].begin() + begin + ahead;
    added.tokens.insert(added.tokens.end(), first, first + (end - begin));
    added.logits_at.push_back(static_cast<int64_t>(added.tokens.size()) - 1);
    result.ran.push_back(row);
  }
  if (result.ran.empty()) return result;
  const Extended out = model_.extend_mtp(module, added, at::cat(hidden), caches_);
  result.logits = out.logits.to(at::kCPU, at::kFloat).contiguous();
  int64_t begin = 0;
  for (const size_t row : result.ran) {
    if (module + 1 < depth_)
      inputs_[row][module + 1].append(out.hidden.narrow(0, begin, added.counts[row]));
    begin += added.counts[row];
  }
  return result;
}

void Drafter::settle(size_t row, int64_t tokens, int64_t positions) {
  int64_t known = positions;  // of the module's input
  for (size_t k = 0; k < depth_; ++k) {
    KvCache& cache = caches_[layers_ + k];
    const int64_t final = std::max<int64_t>(tokens - int64_t(k) - 1, 0);
    const int64_t length = std::min(cache.lengths()[row], final);
    if (length < cache.lengths()[row]) cache.truncate(int64_t(row), length);
    inputs_[row][k].crop(length, known);
    known = length;
  }
}

void Drafter::clear(size_t row) {
  for (size_t k = 0; k < depth_; ++k) {
    caches_[layers_ + k].truncate(int64_t(row), 0);
    inputs_[row][k] = {};
  }
}

}  // namespace dsv3
