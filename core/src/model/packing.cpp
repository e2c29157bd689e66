#include <ATen/ATen.h>

#include <dsv3/sdk/packing.h>

namespace dsv3 {
namespace {

/// int64 [B, T]: 1 where an id differs from the one before it in the row, else 0.
at::Tensor changes_of(const at::Tensor& document_ids) {
  const int64_t length = document_ids.size(1);
  const at::Tensor changes = at::zeros_like(document_ids);
  if (length > 1)
    changes.narrow(1, 1, length - 1)
        .copy_(document_ids.narrow(1, 1, length - 1).ne(document_ids.narrow(1, 0, length - 1)));
  return changes;
}

/// int64 [B, T]: index of the document, counted from 0 in each row.
at::Tensor runs_of(const at::Tensor& document_ids) {
  return changes_of(document_ids).cumsum(1);
}

}  // namespace

at::Tensor positions_of(const at::Tensor& document_ids) {
  const at::Tensor index =
      at::arange(document_ids.size(1), document_ids.options()).expand_as(document_ids);
  // `starts` is the index of each document's first token and 0 elsewhere, so that its running
  // maximum is the start of the current document.
  const at::Tensor starts = index * changes_of(document_ids);
  return index - std::get<0>(starts.cummax(1));
}

at::Tensor attention_mask(const at::Tensor& document_ids) {
  const at::Tensor runs = runs_of(document_ids);
  if (runs.numel() == 0 || runs.select(1, -1).max().item<int64_t>() == 0) return {};
  const at::Tensor same = runs.unsqueeze(2).eq(runs.unsqueeze(1));  // [B, T, T]
  return same.tril_().unsqueeze(1);
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
