// Emulates the flash-attention kernel for rows of different lengths that are packed into one
// tensor.
#include <cmath>
#include <tuple>
#include <vector>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "capability.h"
#include "memory.h"
#include "reference_attention.h"
#include "statistics.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::Tensor;
using c10::SymInt;
using OptionalTensor = std::optional<Tensor>;

/// Row boundaries: the queries of row i start at query_ends[i], its keys and values at key_ends[i].
struct Rows {
  std::vector<int64_t> query_ends, key_ends;
};

void check_ends(const Tensor& ends) {
  TORCH_CHECK(ends.is_cuda(), "cu_seqlens must be on CUDA");
  TORCH_CHECK(ends.scalar_type() == at::kInt, "cu_seqlens must have dtype int32");
  TORCH_CHECK(ends.dim() == 1 && ends.is_contiguous(), "cu_seqlens must be contiguous");
}

void check(const Tensor& q, const Tensor& k, const Tensor& v) {
  TORCH_CHECK(is_ampere_or_newer(), "FlashAttention only supports Ampere GPUs or newer.");
  for (const Tensor& t : {q, k, v}) {
    TORCH_CHECK(t.is_cuda(), "Input tensor must be on CUDA device");
    TORCH_CHECK(t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf,
                "FlashAttention only support fp16 and bf16 data type");
    TORCH_CHECK(t.scalar_type() == q.scalar_type(), "query and value must have the same dtype");
    TORCH_CHECK(t.stride(-1) == 1, "Input tensor must have contiguous last dimension");
    TORCH_CHECK(
        t.dim() == 3 && t.size(-1) == q.size(-1),
        "FlashAttention requires [tokens, heads, dim] tensors with the same head dimension");
  }
  TORCH_CHECK(q.size(-1) <= 256, "FlashAttention forward only supports head dimension at most 256");
  TORCH_CHECK(q.size(-1) % 8 == 0, "head_size should be a multiple of 8");
  TORCH_CHECK(k.size(0) == v.size(0) && k.size(1) == v.size(1),
              "key and value must have the same shape");
  TORCH_CHECK(q.size(1) % k.size(1) == 0,
              "Number of heads in key/value must divide number of heads in query");
}

std::vector<int64_t> values_of(const Tensor& ends, int64_t total, int64_t longest) {
  const Tensor host = twin(ends);
  std::vector<int64_t> values(host.const_data_ptr<int>(),
                              host.const_data_ptr<int>() + host.numel());
  // In these cases, the real kernel reads memory outside the row.
  TORCH_CHECK(values.front() == 0 && values.back() == total,
              "fake_cuda: cu_seqlens must start with 0 and end with the number of tokens");
  for (size_t i = 0; i + 1 < values.size(); ++i)
    TORCH_CHECK(values[i] <= values[i + 1] && values[i + 1] - values[i] <= longest,
                "fake_cuda: cu_seqlens decreases, or a row is longer than the given maximum");
  return values;
}

/// Returns row i of `packed` [tokens, heads, dim] as [1, heads, tokens in the row, dim].
Tensor row(const Tensor& packed, const std::vector<int64_t>& ends, size_t i) {
  return packed.slice(0, ends[i], ends[i + 1]).transpose(0, 1).unsqueeze(0);
}

Tensor packed_again(const std::vector<Tensor>& rows) {
  std::vector<Tensor> parts;
  for (const Tensor& one : rows) parts.push_back(one.squeeze(0).transpose(0, 1));
  return at::cat(parts).contiguous();
}

struct Window {
  std::optional<SymInt> left, right;
};

void check_supported(double dropout, bool causal, const Window& window) {
  TORCH_CHECK(dropout == 0, "fake_cuda: attention with dropout is not implemented");
  const SymInt left = window.left.value_or(-1), right = window.right.value_or(-1);
  TORCH_CHECK((left == -1 && right == -1) || (causal && left >= -1 && right <= 0),
              "fake_cuda: sliding-window attention that is not causal is not implemented");
}

Attention attention_of_row(const Tensor& q, const Tensor& k, const Tensor& v, const Rows& rows,
                           size_t i, bool causal, double scale, const Window& window) {
  return {.query = row(q, rows.query_ends, i),
          .key = row(k, rows.key_ends, i),
          .value = row(v, rows.key_ends, i),
          .bias = {},
          .causal = causal,
          .bottom_right = true,
          .scale = scale,
          .left = window.left.value_or(-1).expect_int()};
}

double scale_or_default(std::optional<double> scale, const Tensor& query) {
  return scale.value_or(1 / std::sqrt(double(query.size(-1))));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> varlen(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& q_ends,
    const OptionalTensor& k_ends, SymInt max_q, SymInt max_k, double dropout, bool causal, bool,
    std::optional<double> scale, std::optional<SymInt> left, std::optional<SymInt> right,
    const OptionalTensor& seqused, const OptionalTensor& slopes) {
  check_supported(dropout, causal, {left, right});
  TORCH_CHECK(q_ends && k_ends && !seqused && !slopes,
              "fake_cuda: _flash_attention_forward requires cum_seq_q and cum_seq_k, without "
              "seqused_k and alibi_slopes");
  check(q, k, v);
  check_ends(*q_ends);
  check_ends(*k_ends);
  Tensor out, lse;
  if (dry()) {
    out = empty_on_device({q.size(0), q.size(1), v.size(2)}, q.scalar_type());
    lse = empty_on_device({q.size(1), q.size(0)}, at::kFloat);
  } else {
    const Rows rows{values_of(*q_ends, q.size(0), max_q.expect_int()),
                    values_of(*k_ends, k.size(0), max_k.expect_int())};
    std::vector<Tensor> outs, lses;
    for (size_t i = 0; i + 1 < rows.query_ends.size(); ++i) {
      const auto [row_out, row_lse] = forward(attention_of_row(
          twin(q), twin(k), twin(v), rows, i, causal, scale_or_default(scale, q), {left, right}));
      outs.push_back(row_out);
      lses.push_back(row_lse.squeeze(0));
    }
    out = to_device(packed_again(outs));
    lse = to_device(at::cat(lses, 1).contiguous());
  }
  count_attention("flash_varlen");
  count_operator("aten::_flash_attention_forward", {q, k, v, *q_ends, *k_ends, max_q, max_k},
                 {out, lse});
  const Tensor none = empty_on_device({2}, at::kUInt64);
  return {out, lse, none, empty_on_device({}, at::kUInt64), empty_on_device({0}, q.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> varlen_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& q_ends, const Tensor& k_ends, SymInt max_q, SymInt max_k,
    double dropout, bool causal, const Tensor&, const Tensor&, std::optional<double> scale,
    std::optional<SymInt> left, std::optional<SymInt> right) {
  check_supported(dropout, causal, {left, right});
  TORCH_CHECK(q_ends.defined() && k_ends.defined(),
              "fake_cuda: _flash_attention_backward requires cum_seq_q and cum_seq_k");
  check(q, k, v);
  check_ends(q_ends);
  check_ends(k_ends);
  TORCH_CHECK(dout.is_cuda() && dout.sizes() == out.sizes(),
              "grad_out must have the same shape as out");
  TORCH_CHECK(lse.is_cuda() && lse.size(0) == q.size(1) && lse.size(1) == q.size(0),
              "logsumexp must have shape [heads, tokens]");
  Tensor dq, dk, dv;
  if (dry()) {
    dq = empty_on_device(q.sizes(), q.scalar_type());
    dk = empty_on_device(k.sizes(), k.scalar_type());
    dv = empty_on_device(v.sizes(), v.scalar_type());
  } else {
    const Rows rows{values_of(q_ends, q.size(0), max_q.expect_int()),
                    values_of(k_ends, k.size(0), max_k.expect_int())};
    std::vector<Tensor> dqs, dks, dvs;
    for (size_t i = 0; i + 1 < rows.query_ends.size(); ++i) {
      const auto [row_dq, row_dk, row_dv] =
          backward(attention_of_row(twin(q), twin(k), twin(v), rows, i, causal,
                                    scale_or_default(scale, q), {left, right}),
                   row(twin(dout), rows.query_ends, i), row(twin(out), rows.query_ends, i),
                   twin(lse).slice(1, rows.query_ends[i], rows.query_ends[i + 1]).unsqueeze(0));
      dqs.push_back(row_dq);
      dks.push_back(row_dk);
      dvs.push_back(row_dv);
    }
    dq = to_device(packed_again(dqs));
    dk = to_device(packed_again(dks));
    dv = to_device(packed_again(dvs));
  }
  count_operator("aten::_flash_attention_backward",
                 {dout, q, k, v, out, lse, q_ends, k_ends, max_q, max_k}, {dq, dk, dv});
  return {dq, dk, dv};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_flash_attention_forward", &varlen);
  library.impl("_flash_attention_backward", &varlen_backward);
}

}  // namespace fake_cuda
