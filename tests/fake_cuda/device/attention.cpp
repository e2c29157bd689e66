// Chooses the attention kernel that LibTorch would choose on a GPU, and emulates the flash,
// memory-efficient and cuDNN kernels on the host.
#include <array>
#include <cmath>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include <ATen/Context.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/empty.h>
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

bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
}

bool all_half(const Tensor& q, const Tensor& k, const Tensor& v) {
  return is_half(q) && k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type();
}

bool have_dense_last_dim(const Tensor& q, const Tensor& k, const Tensor& v) {
  return q.stride(3) == 1 && k.stride(3) == 1 && v.stride(3) == 1;
}

bool supports_heads(const Tensor& q, const Tensor& k, const Tensor& v, bool grouped) {
  if (!grouped) return k.size(1) == q.size(1) && v.size(1) == q.size(1);
  return q.size(1) % k.size(1) == 0 && q.size(1) % v.size(1) == 0;
}

// These functions follow the rules for dense tensors in LibTorch 2.11's sdp_utils.cpp
// (can_use_..._attention).
bool flash_fits(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                bool causal, bool grouped) {
  return at::globalContext().userEnabledFlashSDP() && is_ampere_or_newer() && all_half(q, k, v) &&
         !mask && q.size(3) == v.size(3) && q.size(3) <= 256 &&
         (!causal || q.size(2) == k.size(2)) && have_dense_last_dim(q, k, v) &&
         supports_heads(q, k, v, grouped);
}

bool cudnn_fits(const Tensor& q, const Tensor& k, const Tensor& v, bool grouped) {
  const Capability gpu = capability();
  int64_t limit = gpu.major == 9 && gpu.minor == 0 ? 256 : 128;
  if (gpu.major == 10 && q.size(3) == 192 && v.size(3) == 128) limit = 192;
  const at::Context& context = at::globalContext();
  return context.userEnabledCuDNNSDP() && is_ampere_or_newer() &&
         (!context.deterministicAlgorithms() || context.deterministicAlgorithmsWarnOnly()) &&
         all_half(q, k, v) && q.size(3) <= limit && v.size(3) <= limit && q.size(3) % 8 == 0 &&
         v.size(3) % 8 == 0 && k.size(2) != 1 && have_dense_last_dim(q, k, v) &&
         supports_heads(q, k, v, grouped);
}

bool efficient_fits(const Tensor& q, const Tensor& k, const Tensor& v) {
  const int64_t alignment = is_half(q) ? 8 : 4;
  const bool has_dtype = is_ampere_or_newer() || q.scalar_type() != at::kBFloat16;
  return at::globalContext().userEnabledMemEfficientSDP() && has_dtype &&
         (is_half(q) || q.scalar_type() == at::kFloat) && q.size(3) % alignment == 0 &&
         v.size(3) % alignment == 0 && have_dense_last_dim(q, k, v) &&
         supports_heads(q, k, v, false);
}

/// LibTorch 2.11 prefers cuDNN on data-centre Hopper and Blackwell GPUs if cuDNN is newer than
/// 9.15.0.
bool prefers_cudnn() {
  const char* deprioritized = std::getenv("TORCH_CUDNN_SDPA_DEPRIORITIZED");
  if (deprioritized && std::string(deprioritized) == "1") return false;
  const Capability gpu = capability();
  return (gpu.major == 9 || gpu.major == 10) && (gpu.minor == 0 || gpu.minor == 3);
}

int64_t choose(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
               double, bool causal, std::optional<double>, bool grouped) {
  if (prefers_cudnn() && cudnn_fits(q, k, v, grouped))
    return int64_t(at::SDPBackend::cudnn_attention);
  if (flash_fits(q, k, v, mask, causal, grouped)) return int64_t(at::SDPBackend::flash_attention);
  if (efficient_fits(q, k, v)) return int64_t(at::SDPBackend::efficient_attention);
  count_attention("math");
  return int64_t(at::SDPBackend::math);
}

int64_t choose_dispatched(const Tensor& q, const Tensor& k, const Tensor& v,
                          const OptionalTensor& mask, double dropout, bool causal,
                          std::optional<double> scale, bool grouped) {
  return choose(q, k, v, mask, dropout, causal, scale, grouped);
}

double scale_or_default(std::optional<double> scale, const Tensor& query) {
  return scale.value_or(1 / std::sqrt(double(query.size(-1))));
}

Attention twins_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                   bool causal, std::optional<double> scale) {
  return {.query = twin(q),
          .key = twin(k),
          .value = twin(v),
          .bias = twin(bias),
          .causal = causal,
          .scale = scale_or_default(scale, q)};
}

/// Copies `host` [batch, heads, tokens, dim] to the device with the memory layout [batch, tokens,
/// heads, dim], which CUDA's kernels use for their results.
Tensor laid_out(const Tensor& host) {
  return to_device(host.transpose(1, 2).contiguous()).transpose(1, 2);
}

Tensor empty_laid_out(const Tensor& like, int64_t dim) {
  return empty_on_device({like.size(0), like.size(2), like.size(1), dim}, like.scalar_type())
      .transpose(1, 2);
}

void check_no_dropout(double dropout) {
  TORCH_CHECK(dropout == 0, "fake_cuda: attention with dropout is not implemented");
}

void check_on_device(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors)
    TORCH_CHECK(!tensor.defined() || tensor.is_cuda(),
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and cpu! (attention)");
}

std::tuple<Tensor, Tensor> run(const std::string& kernel, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& bias, bool causal,
                               std::optional<double> scale) {
  check_on_device({q, k, v, bias});
  Tensor out, lse;
  if (dry()) {
    out = empty_laid_out(q, v.size(3));
    lse = empty_on_device({q.size(0), q.size(1), q.size(2)}, at::kFloat);
  } else {
    std::tie(out, lse) = forward(twins_of(q, k, v, bias, causal, scale));
    out = laid_out(out);
    lse = to_device(lse);
  }
  count_attention(kernel);
  count_operator("aten::_scaled_dot_product_" + kernel + "_attention", {q, k, v, bias}, {out, lse});
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> run_backward(const std::string& kernel, const Tensor& dout,
                                                const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& bias, bool causal,
                                                std::optional<double> scale) {
  check_on_device({dout, q, k, v, bias});
  Tensor dq, dk, dv;
  if (dry()) {
    dq = empty_laid_out(q, q.size(3));
    dk = empty_laid_out(k, k.size(3));
    dv = empty_laid_out(v, v.size(3));
  } else {
    std::tie(dq, dk, dv) = backward(twins_of(q, k, v, bias, causal, scale), twin(dout));
    dq = laid_out(dq);
    dk = laid_out(dk);
    dv = laid_out(dv);
  }
  count_operator("aten::_scaled_dot_product_" + kernel + "_attention_backward",
                 {dout, q, k, v, bias}, {dq, dk, dv});
  return {dq, dk, dv};
}

Tensor no_seed() {
  return at::empty({}, at::TensorOptions().dtype(at::kLong));
}

using WithSeeds =
    std::tuple<Tensor, Tensor, Tensor, Tensor, SymInt, SymInt, Tensor, Tensor, Tensor>;

WithSeeds flash(const Tensor& q, const Tensor& k, const Tensor& v, double dropout, bool causal,
                bool, std::optional<double> scale) {
  check_no_dropout(dropout);
  TORCH_CHECK(is_ampere_or_newer(), "FlashAttention only supports Ampere GPUs or newer.");
  TORCH_CHECK(all_half(q, k, v), "FlashAttention only support fp16 and bf16 data type");
  TORCH_CHECK(q.size(3) == v.size(3),
              "FlashAttention requires query and value to have the same head dimension");
  auto [out, lse] = run("flash", q, k, v, {}, causal, scale);
  const Tensor none = empty_on_device({0}, at::kLong);
  return {out, lse, Tensor(), Tensor(), q.size(2), k.size(2), none, none, Tensor()};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(const Tensor& dout, const Tensor& q,
                                                  const Tensor& k, const Tensor& v, const Tensor&,
                                                  const Tensor&, const Tensor&, const Tensor&,
                                                  SymInt, SymInt, double, bool causal,
                                                  const Tensor&, const Tensor&,
                                                  std::optional<double> scale) {
  return run_backward("flash", dout, q, k, v, {}, causal, scale);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient(const Tensor& q, const Tensor& k,
                                                     const Tensor& v, const OptionalTensor& bias,
                                                     bool, double dropout, bool causal,
                                                     std::optional<double> scale) {
  check_no_dropout(dropout);
  auto [out, lse] = run("efficient", q, k, v, bias.value_or(Tensor()), causal, scale);
  return {out, lse, no_seed(), no_seed()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, std::array<bool, 4> needed,
    bool causal, std::optional<double> scale) {
  TORCH_CHECK(!(bias.defined() && needed[3]),
              "fake_cuda: the gradient of the attention bias is not implemented");
  const auto [dq, dk, dv] = run_backward("efficient", dout, q, k, v, bias, causal, scale);
  return {dq, dk, dv, Tensor()};
}

WithSeeds cudnn(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias, bool,
                double dropout, bool causal, bool, std::optional<double> scale) {
  check_no_dropout(dropout);
  TORCH_CHECK(cudnn_fits(q, k, v, true), "cuDNN attention does not support these tensors");
  auto [out, lse] = run("cudnn", q, k, v, bias.value_or(Tensor()), causal, scale);
  return {out,       lse.unsqueeze(-1), Tensor(),  Tensor(), q.size(2),
          k.size(2), no_seed(),         no_seed(), Tensor()};
}

std::tuple<Tensor, Tensor, Tensor> cudnn_backward(const Tensor& dout, const Tensor& q,
                                                  const Tensor& k, const Tensor& v, const Tensor&,
                                                  const Tensor&, const Tensor&, const Tensor&,
                                                  const Tensor& bias, const Tensor&, const Tensor&,
                                                  SymInt, SymInt, double, bool causal,
                                                  std::optional<double> scale) {
  return run_backward("cudnn", dout, q, k, v, bias, causal, scale);
}

const struct SetChoice {
  SetChoice() { at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose); }
} set_choice;

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_fused_sdp_choice", &choose_dispatched);
  library.impl("_scaled_dot_product_flash_attention", &flash);
  library.impl("_scaled_dot_product_flash_attention_backward", &flash_backward);
  library.impl("_scaled_dot_product_efficient_attention", &efficient);
  library.impl("_scaled_dot_product_efficient_attention_backward", &efficient_backward);
  library.impl("_scaled_dot_product_cudnn_attention", &cudnn);
  library.impl("_scaled_dot_product_cudnn_attention_backward", &cudnn_backward);
}

}  // namespace fake_cuda
