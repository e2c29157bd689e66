// Operators that components share. Each has a plain reference in LibTorch calls that tests compare
// with.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3 {

struct Sequence;

/// Identity on `y` whose backward adds `scale` as the gradient of the scalar `aux`: the way to add
/// a side loss that survives activation checkpointing. `aux` is summed over rows; pass
/// `seq.aux_scale` as scale.
at::Tensor add_loss(const at::Tensor& y, const at::Tensor& aux, double scale);

/// silu(gate) * up, saving only its inputs. `gate_up` is [..., 2F], gate first; the result is [...,
/// F]. `row_weights` (fp32, float64 with float64), one for each row of the result, multiplies the
/// rows: a mixture's expert weights.
at::Tensor swiglu(const at::Tensor& gate_up, const at::Tensor& row_weights = {});

/// RMSNorm as defined at dsv3::RmsNorm. x is [..., D], weight [D].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// Rotates feature pairs of x [B, T, H, R] by the angles whose cosine and sine are [B, T, R/2] or
/// [T, R/2]. `interleaved`: pairs are (x0, x1), (x2, x3), ... (DeepSeek's layout); else (x0,
/// x_{R/2}), ... .
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  bool interleaved);

/// Causal attention that keeps documents apart (`seq.mask`).
/// q is [B, T, H, Dk], k [B, S, Hk, Dk], v [B, S, Hk, Dv], H a multiple of Hk; the result is [B, T,
/// H, Dv]. S > T (a row of a KvCache): the queries are of the last T tokens. `scale` multiplies the
/// scores. Picks flash attention wherever shapes allow it.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const Sequence& seq, double scale);

/// Grouped GEMM: rows of x [N, K] sorted by group times weight [E, M, K] transposed -> [N, M].
/// `ends` is int32 [E] on x's device: the cumulative ends of the groups.
at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& ends);

/// Sum over valid positions of the cross-entropy of softmax(x W^T), without ever holding all
/// logits. x [N, D], weight [V, D], targets int64 [N] with -1 = not counted. `z_weight` adds
/// z_weight * log(Z)^2 to each counted position; `scale` multiplies the differentiable sum (put
/// divisors here: they cost nothing in the kernel, but a pass over [V, D] behind it). `chunk` is
/// the number of rows whose logits are held at once, 0 = chosen by size and device. Returns two
/// fp32 scalars (float64 when x is): {scaled loss sum to differentiate, plain cross-entropy sum
/// without z and scale (no gradient)}. No counted position: both are 0. Not differentiable twice.
std::pair<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                       const at::Tensor& weight,
                                                       const at::Tensor& targets,
                                                       double z_weight = 0, double scale = 1,
                                                       int64_t chunk = 0);

/// `ops: reference` in an experiment: every operator above takes its plain LibTorch path.
/// Process-wide.
void use_reference_ops(bool on);
bool reference_ops();

}  // namespace dsv3
