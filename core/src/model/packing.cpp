#include <ATen/ATen.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/packing.h>

#include "model/device_batch.h"

namespace dsv3 {
namespace {

/// int64 [B, T]: 1 where a document id differs from the previous one in the row, else 0.
at::Tensor changes_of(const at::Tensor& document_ids) {
  const int64_t length = document_ids.size(1);
  const at::Tensor changes = at::zeros_like(document_ids);
  if (length > 1)
    changes.narrow(1, 1, length - 1)
        .copy_(document_ids.narrow(1, 1, length - 1).ne(document_ids.narrow(1, 0, length - 1)));
  return changes;
}

/// int64 [B, T]: index of each token's document within its row, from 0.
at::Tensor runs_of(const at::Tensor& document_ids) {
  return changes_of(document_ids).cumsum(1);
}

}  // namespace

std::pair<at::Tensor, int64_t> document_boundaries(const at::Tensor& document_ids) {
  const int64_t rows = document_ids.size(0), length = document_ids.size(1);
  const at::Tensor ids = document_ids.contiguous();
  const int64_t* const id = ids.const_data_ptr<int64_t>();
  std::vector<int64_t> starts;
  int64_t longest = 0;
  const auto add = [&](int64_t start) {
    if (!starts.empty()) longest = std::max(longest, start - starts.back());
    starts.push_back(start);
  };
  for (int64_t i = 0; i < rows * length; ++i)
    if (i % length == 0 || id[i] != id[i - 1]) add(i);
  add(rows * length);
  return {at::tensor(starts, at::kLong), longest};
}

at::Tensor positions_of(const at::Tensor& document_ids) {
  const at::Tensor index =
      at::arange(document_ids.size(1), document_ids.options()).expand_as(document_ids);
  // `starts` is the index of each document's first token and 0 elsewhere, so that its running
  // maximum is the start of the current document.
  const at::Tensor starts = index * changes_of(document_ids);
  return index - std::get<0>(starts.cummax(1));
}

Packing::Packing(at::Tensor mask) : mask_(std::move(mask)) {}

Packing::Packing(at::Tensor document_ids, at::Tensor boundaries, int64_t longest)
    : document_ids_(std::move(document_ids)),
      boundaries_(std::move(boundaries)),
      longest_(longest) {}

at::Tensor Packing::mask() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!mask_.defined()) {
    const at::Tensor runs = runs_of(document_ids_);
    const at::Tensor same = runs.unsqueeze(2).eq(runs.unsqueeze(1));  // [B, T, T]
    mask_ = same.tril_().unsqueeze(1);
  }
  return mask_;
}

at::Tensor Packing::starts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!starts_.defined() && boundaries_.defined()) {
    const int64_t rows = document_ids_.size(0), length = document_ids_.size(1);
    const at::Tensor offsets = boundaries_.to(at::kLong);  // in the flattened rows
    const at::Tensor begins = at::zeros({rows * length + 1}, offsets.options());
    const at::Tensor document =
        begins.scatter_(0, offsets, 1).narrow(0, 0, rows * length).cumsum(0) - 1;
    const at::Tensor row_begins = at::arange(rows, offsets.options()).mul_(length);
    starts_ = offsets.index_select(0, document).view({rows, length}) - row_begins.unsqueeze(1);
  }
  return starts_;
}

std::shared_ptr<const Packing> packing_of(const at::Tensor& document_ids) {
  const auto [boundaries, longest] = document_boundaries(document_ids);
  if (boundaries.size(0) <= document_ids.size(0) + 1) return nullptr;
  return std::make_shared<Packing>(document_ids, boundaries.to(at::kInt), longest);
}

at::Tensor Sequence::mask() const {
  return packing ? packing->mask() : at::Tensor();
}

at::Tensor shifted_targets(const at::Tensor& tokens, const at::Tensor& document_ids,
                           int64_t depth) {
  const int64_t length = tokens.size(1) - 1, ahead = depth + 1;
  at::Tensor targets = at::full({tokens.size(0), length}, -1, tokens.options());
  const int64_t count = length + 1 - ahead;  // number of positions whose target is in the row
  if (count <= 0) return targets;
  at::Tensor inside = tokens.narrow(1, ahead, count);
  if (document_ids.defined()) {
    const at::Tensor runs = runs_of(document_ids);
    const at::Tensor valid = runs.narrow(1, 0, count)
                                 .eq(runs.narrow(1, ahead, count))
                                 .logical_and(document_ids.narrow(1, ahead, count).ge(0));
    inside = at::where(valid, inside, at::full({}, -1, tokens.options()));
  }
  targets.narrow(1, 0, count).copy_(inside);
  return targets;
}

}  // namespace dsv3
