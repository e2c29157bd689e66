// The simulated device and the FLOP counter, and Meta kernels for operators that LibTorch
// implements for meta tensors only in Python.
#include "ops/meta.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace dsv3 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

thread_local at::DeviceType simulated = at::kMeta;
thread_local Flops* counted = nullptr;

void count(const Flops& flops) {
  if (counted) *counted += flops;
}

/// Counts the operators that multiply two matrices or two batches of matrices.
std::unique_ptr<at::ObserverContext> count_product(const at::RecordFunction& function) {
  std::string_view name = function.name();
  if (!name.starts_with("aten::")) return nullptr;
  name.remove_prefix(6);
  if (name.ends_with("mm_")) name.remove_suffix(1);
  const bool adds = name == "addmm" || name == "baddbmm" || name == "addbmm";
  if (!adds && name != "mm" && name != "bmm" && name != "_grouped_mm") return nullptr;
  const auto inputs = function.inputs();
  const at::Tensor &a = inputs[adds ? 1 : 0].toTensor(), &b = inputs[adds ? 2 : 1].toTensor();
  const double flops = 2.0 * double(a.numel()) * double(b.size(-1));
  count({flops, flops});
  return nullptr;
}

/// FLOPs of q k^T and of the product of the weights with v. q [B, H, T, Dk], v [.., S, Dv].
Flops attention_flops(const at::Tensor& q, const at::Tensor& v, bool causal) {
  const double per_pair = 2.0 * double(q.size(0) * q.size(1) * (q.size(3) + v.size(3)));
  const double queries = double(q.size(2)), keys = double(v.size(2));
  const double all = per_pair * queries * keys;
  return {all, causal && queries >= keys ? all - per_pair * keys * keys / 2 : all};
}

/// Attention with a fused kernel, which saves the log-sum-exp of the scores instead of the scores.
struct MetaAttention : torch::autograd::Function<MetaAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& mask,
                            bool causal) {
    const at::Tensor out =
        at::empty({q.size(0), q.size(2), q.size(1), v.size(3)}, q.options()).transpose(1, 2);
    const at::Tensor log_sum_exp =
        at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
    at::Tensor bias = mask.value_or(at::Tensor());  // kernels convert masks to biases
    if (bias.defined() && bias.scalar_type() == at::kBool)
      bias = at::empty(bias.sizes(), q.options());
    // A mask is causal, too: sdk/attention.h.
    const Flops flops = attention_flops(q, v, causal || bias.defined());
    count(flops);
    ctx->save_for_backward({q, k, v, out, log_sum_exp, bias});
    ctx->saved_data["all"] = flops.all;
    ctx->saved_data["causal"] = flops.causal;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list) {
    const variable_list saved = ctx->get_saved_variables();
    // The usual convention: recomputing the scores does not count.
    count({2 * ctx->saved_data["all"].toDouble(), 2 * ctx->saved_data["causal"].toDouble()});
    return {at::empty_like(saved[0]), at::empty_like(saved[1]), at::empty_like(saved[2]),
            at::Tensor(), at::Tensor()};
  }
};

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::optional<at::Tensor>& mask, double, bool causal,
                     std::optional<double>, bool) {
  return MetaAttention::apply(q, k, v, mask, causal);
}

// q [tokens, H, Dk], v [tokens, H, Dv]
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> flash_forward(
    const at::Tensor& q, const at::Tensor&, const at::Tensor& v, const std::optional<at::Tensor>&,
    const std::optional<at::Tensor>&, c10::SymInt, c10::SymInt, double, bool, bool,
    std::optional<double>, std::optional<c10::SymInt>, std::optional<c10::SymInt>,
    const std::optional<at::Tensor>&, const std::optional<at::Tensor>&) {
  std::vector<int64_t> size = q.sizes().vec();
  size.back() = v.size(-1);
  const at::Tensor none = at::empty({0}, q.options());
  return {at::empty(size, q.options()),
          at::empty(q.sizes().slice(0, q.dim() - 1), q.options().dtype(at::kFloat)), none, none,
          none};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(
    const at::Tensor&, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt,
    c10::SymInt, double, bool, const at::Tensor&, const at::Tensor&, std::optional<double>,
    std::optional<c10::SymInt>, std::optional<c10::SymInt>) {
  return {at::empty_like(q), at::empty_like(k), at::empty_like(v)};
}

// Rows split into groups: [rows, K] x [E, K, M], or the weight gradient [M, rows] x [rows, K].
at::Tensor grouped_mm(const at::Tensor& a, const at::Tensor& b,
                      const std::optional<at::Tensor>& ends, const std::optional<at::Tensor>&,
                      std::optional<at::ScalarType> type) {
  const auto options = a.options().dtype(type.value_or(a.scalar_type()));
  if (b.dim() == 3) return at::empty({a.size(0), b.size(2)}, options);
  return at::empty({ends->size(0), a.size(0), b.size(1)}, options);
}

at::Tensor index_select(const at::Tensor& x, int64_t dim, const at::Tensor& index) {
  std::vector<int64_t> size = x.sizes().vec();
  size[size_t(at::maybe_wrap_dim(dim, x.dim()))] = index.numel();
  return at::empty(size, x.options());
}

at::Tensor embedding_gradient(const at::Tensor& gradient, const at::Tensor&, c10::SymInt rows,
                              c10::SymInt, bool) {
  return at::empty({rows.expect_int(), gradient.size(-1)}, gradient.options());
}

at::Tensor where(const at::Tensor& condition, const at::Tensor& a, const at::Tensor& b) {
  const auto size = at::infer_size(at::infer_size(condition.sizes(), a.sizes()), b.sizes());
  return at::empty(size, a.options().dtype(at::result_type(a, b)));
}

at::Tensor& abs_out(const at::Tensor& x, at::Tensor& out) {
  out.resize_(x.sizes());
  return out;
}

TORCH_LIBRARY_IMPL(aten, Meta, library) {
  library.impl("_flash_attention_forward", flash_forward);
  library.impl("_flash_attention_backward", flash_backward);
  library.impl("_grouped_mm", grouped_mm);
  library.impl("abs.out", abs_out);
  library.impl("embedding_dense_backward", embedding_gradient);
  library.impl("index_select", index_select);
  library.impl("where.self", where);
  library.impl("scaled_dot_product_attention", attention);
}
TORCH_LIBRARY_IMPL(aten, AutogradMeta, library) {
  library.impl("scaled_dot_product_attention", attention);
}

}  // namespace

SimulatedDevice::SimulatedDevice(at::DeviceType device) {
  simulated = device;
}
SimulatedDevice::~SimulatedDevice() {
  simulated = at::kMeta;
}

bool on_cpu(const at::Tensor& tensor) {
  return tensor.is_cpu() || (tensor.is_meta() && simulated == at::kCPU);
}
bool on_cuda(const at::Tensor& tensor) {
  return tensor.is_cuda() || (tensor.is_meta() && simulated == at::kCUDA);
}

FlopCounter::FlopCounter()
    : callback_(at::addThreadLocalCallback(at::RecordFunctionCallback(count_product)
                                               .needsInputs(true)
                                               .scopes({at::RecordScope::FUNCTION}))) {
  counted = &total_;
}
FlopCounter::~FlopCounter() {
  at::removeCallback(callback_);
  counted = nullptr;
}

}  // namespace dsv3
