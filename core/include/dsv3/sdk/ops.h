// Operators that components share. Each also has a reference implementation in plain LibTorch.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

namespace dsv3 {

struct Sequence;

/// Adds an auxiliary loss in a way that works with activation checkpointing. Returns `y`; in the
/// backward pass, the scalar `aux` receives the gradient `scale`. Sum `aux` over rows, and pass
/// `seq.aux_scale` as `scale`.
at::Tensor add_loss(const at::Tensor& y, const at::Tensor& aux, double scale);

/// silu(gate) * up, which saves only its inputs for the backward pass. `gate_up` is [..., 2F], gate
/// first; the result is [..., F]. `row_weights` (fp32, or float64 with float64) multiplies the rows
/// of the result, e.g. by the expert weights in a mixture of experts.
at::Tensor swiglu(const at::Tensor& gate_up, const at::Tensor& row_weights = {});

/// RMSNorm as defined by dsv3::RmsNorm. x is [..., D], weight [D].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// Rotates feature pairs of x [B, T, H, R] by the angles whose cosines and sines are [B, T, R/2] or
/// [T, R/2]. If `interleaved`, pairs are (x0, x1), (x2, x3), ... (DeepSeek's layout), else
/// (x0, x_{R/2}), ... .
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  bool interleaved);

struct AttendOptions {
  std::optional<double> scale = {};    ///< multiplies the scores; default: Dk^-0.5
  std::optional<int64_t> window = {};  ///< number of tokens a query attends to: itself and the
                                       ///< window - 1 tokens before it; unset = all
  /// Logits [H] that join each query's softmax and take part of its weight without adding a value
  /// (gpt-oss, arXiv 2508.10925). Undefined = none. Differentiable.
  at::Tensor sinks = {};
  double softcap = 0;  ///< scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv
                       ///< 2408.00118); 0 = off
};

/// Causal attention within documents (`seq.packing`). q is [B, T, H, Dk], k [B, S, Hk, Dk], v [B,
/// S, Hk, Dv], H a multiple of Hk; the result is [B, T, H, Dv]. If S > T (a row of a KvCache), the
/// queries belong to the last T tokens. An arbitrary mask in `seq.packing` replaces causality. It
/// must broadcast to [B, 1, T, S] and allow every query at least one key.
/// Uses flash attention wherever the shapes and options allow it. Otherwise, options cost memory
/// for the scores of one block of queries at a time. Records the metric attention/max_logit: the
/// largest score, before softcap, of up to 64 sampled queries. Throws c10::Error if shapes or
/// options are invalid.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const Sequence& seq, const AttendOptions& options = {});

/// Grouped GEMM: rows of x [N, K], sorted by group, times weight [E, M, K] transposed -> [N, M].
/// `ends` int32 [E], on x's device, contains the index after each group's last row.
at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& ends);

/// Sums the cross-entropy of softmax(x W^T) over all rows with a target, without having all logits
/// in memory at once. x [N, D], weight [V, D], targets int64 [N] with -1 = no target. `z_weight`
/// adds z_weight * log(Z)^2 for each of these rows. `scale` multiplies the differentiable sum. Use
/// it for divisors: dividing the returned loss instead costs a pass over the [V, D] gradient.
/// `chunk` is the number of rows whose logits are in memory at once; 0 = chosen by size and device.
/// Returns two fp32 scalars (float64 if x is float64): {scaled loss sum to differentiate, plain
/// cross-entropy sum without z and scale (no gradient)}. Both are 0 if no row has a target. Not
/// differentiable twice.
std::pair<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                       const at::Tensor& weight,
                                                       const at::Tensor& targets,
                                                       double z_weight = 0, double scale = 1,
                                                       int64_t chunk = 0);

/// Makes every operator above use its plain LibTorch implementation (`ops: reference` in an
/// experiment). Process-wide.
void use_reference_ops(bool on);
bool reference_ops();

}  // namespace dsv3
