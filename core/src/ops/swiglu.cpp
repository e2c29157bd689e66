// silu(gate) * up, with one pass over the data in the forward pass and one in the backward pass.
// Saves only its inputs.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/sdk/ops.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

// Computes rows [begin, end) of `out` [N, F] from gate_up [N, 2F]. Null `weights` means all 1.
template <class T>
DSV3_INLINE void forward_rows(const T* gate_up, const simd::Scalar<T>* weights, T* out,
                              int64_t begin, int64_t end, int64_t size) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * size;
    const T* up = gate + size;
    T* to = out + row * size;
    const simd::Scalar<T> w = weights ? weights[row] : 1;
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      const auto g = simd::load(gate + i, n);
      simd::store(to + i, g * simd::sigmoid(g) * simd::load(up + i, n) * w, n);
    });
  }
}

// d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g). `weights` and `dweights` may be null.
template <class T>
DSV3_INLINE void backward_rows(const T* gate_up, const simd::Scalar<T>* weights, const T* grad,
                               T* out, simd::Scalar<T>* dweights, int64_t begin, int64_t end,
                               int64_t size) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * size;
    const T* up = gate + size;
    const T* from = grad + row * size;
    T* to = out + row * 2 * size;
    const simd::Scalar<T> w = weights ? weights[row] : 1;
    simd::Vec<T> products{};
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      const auto g = simd::load(gate + i, n);
      const auto u = simd::load(up + i, n);
      const auto d = simd::load(from + i, n);
      const auto s = simd::sigmoid(g);
      products += d * u * g * s;
      simd::store(to + i, d * w * u * s * (1 + g * (1 - s)), n);
      simd::store(to + size + i, d * w * g * s, n);
    });
    if (dweights) dweights[row] = simd::sum<T>(products);
  }
}

// target_clones does not work on templates, so each type has its own kernels.
#define DSV3_SWIGLU(T)                                                                      \
  DSV3_CLONES void forward_kernel(const T* gate_up, const simd::Scalar<T>* weights, T* out, \
                                  int64_t begin, int64_t end, int64_t size) {               \
    forward_rows(gate_up, weights, out, begin, end, size);                                  \
  }                                                                                         \
  DSV3_CLONES void backward_kernel(const T* gate_up, const simd::Scalar<T>* weights,        \
                                   const T* grad, T* out, simd::Scalar<T>* dweights,        \
                                   int64_t begin, int64_t end, int64_t size) {              \
    backward_rows(gate_up, weights, grad, out, dweights, begin, end, size);                 \
  }
DSV3_SWIGLU(float)
DSV3_SWIGLU(double)
DSV3_SWIGLU(c10::BFloat16)
#undef DSV3_SWIGLU

at::Tensor plain_forward(const at::Tensor& gate_up, const at::Tensor& row_weights) {
  const std::vector<at::Tensor> halves = gate_up.chunk(2, -1);
  const at::Tensor y = at::silu(halves[0]) * halves[1];
  if (!row_weights.defined()) return y;
  return (y * row_weights.view(y.sizes().slice(0, y.dim() - 1)).unsqueeze(-1)).to(y.scalar_type());
}

// For devices without a fused kernel. Recomputes silu, so that only the inputs are saved.
std::pair<at::Tensor, at::Tensor> plain_backward(const at::Tensor& gate_up,
                                                 const at::Tensor& row_weights,
                                                 const at::Tensor& grad) {
  const std::vector<at::Tensor> halves = gate_up.chunk(2, -1);
  const at::Tensor activated = at::silu(halves[0]);
  at::Tensor upstream = grad, dweights;
  if (row_weights.defined()) {
    const at::Tensor weights = row_weights.view(grad.sizes().slice(0, grad.dim() - 1));
    dweights =
        (grad * activated * halves[1]).sum(-1, false, weights.scalar_type()).view_as(row_weights);
    upstream = (grad * weights.unsqueeze(-1)).to(grad.scalar_type());
  }
  return {at::cat({at::silu_backward(upstream * halves[1], halves[0]), upstream * activated}, -1),
          dweights};
}

at::Tensor swiglu_forward(const at::Tensor& gate_up, const at::Tensor& row_weights) {
  if (!fused_on_cpu(gate_up)) return plain_forward(gate_up, row_weights);
  const int64_t size = gate_up.size(-1) / 2;
  std::vector<int64_t> shape = gate_up.sizes().vec();
  shape.back() = size;
  const at::Tensor in = gate_up.contiguous();
  at::Tensor out = at::empty(shape, in.options());
  for_type(in, [&]<class T>(T) {
    using S = simd::Scalar<T>;
    const T* from = in.const_data_ptr<T>();
    const S* weights = row_weights.defined() ? row_weights.const_data_ptr<S>() : nullptr;
    T* to = out.mutable_data_ptr<T>();
    at::parallel_for(0, out.numel() / size, row_grain(size), [=](int64_t begin, int64_t end) {
      forward_kernel(from, weights, to, begin, end, size);
    });
  });
  return out;
}

// {gradient of gate_up, gradient of row_weights or undefined}
std::pair<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& gate_up,
                                                  const at::Tensor& row_weights,
                                                  const at::Tensor& grad) {
  if (!fused_on_cpu(gate_up)) return plain_backward(gate_up, row_weights, grad);
  const int64_t size = gate_up.size(-1) / 2;
  const at::Tensor in = gate_up.contiguous();
  const at::Tensor upstream = grad.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  at::Tensor dweights = row_weights.defined() ? at::empty_like(row_weights) : at::Tensor();
  for_type(in, [&]<class T>(T) {
    using S = simd::Scalar<T>;
    const T* from = in.const_data_ptr<T>();
    const S* weights = row_weights.defined() ? row_weights.const_data_ptr<S>() : nullptr;
    const T* with = upstream.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    S* sums = row_weights.defined() ? dweights.mutable_data_ptr<S>() : nullptr;
    at::parallel_for(0, upstream.numel() / size, row_grain(size), [=](int64_t begin, int64_t end) {
      backward_kernel(from, weights, with, to, sums, begin, end, size);
    });
  });
  return {out, dweights};
}

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_up,
                            const std::optional<at::Tensor>& weights) {
    const at::Tensor row_weights = weights.value_or(at::Tensor());
    ctx->save_for_backward({gate_up, row_weights});
    return swiglu_forward(gate_up, row_weights);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto [dgate_up, dweights] = swiglu_backward(saved[0], saved[1], grads[0]);
    return {dgate_up, dweights};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& gate_up, const at::Tensor& row_weights) {
  TORCH_CHECK(gate_up.size(-1) % 2 == 0,
              "swiglu: the last dimension must be even (gate and up), not ", gate_up.sizes());
  std::optional<at::Tensor> weights;
  if (row_weights.defined()) {
    TORCH_CHECK(row_weights.numel() * gate_up.size(-1) == gate_up.numel(), "swiglu: row weights ",
                row_weights.sizes(), " do not match gate_up ", gate_up.sizes());
    weights = row_weights.to(math_type(gate_up.scalar_type())).contiguous();
  }
  if (reference_ops()) return plain_forward(gate_up, weights.value_or(at::Tensor()));
  return SwigluFunction::apply(gate_up, weights);
}

}  // namespace dsv3
