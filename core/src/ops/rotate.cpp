// Rotates feature pairs by position-dependent angles. The backward pass rotates by the negative
// angles.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/sdk/ops.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

// Rotates all heads of one token. Pair i is (x[i * step], x[i * step + second]).
template <class T, class S>
void rotate_token(const T* x, int64_t head_stride, const S* cos, const S* sin, T* y, int64_t heads,
                  int64_t half, bool interleaved) {
  const int64_t step = interleaved ? 2 : 1;
  const int64_t second = interleaved ? 1 : half;
  for (int64_t head = 0; head < heads; ++head) {
    const T* from = x + head * head_stride;
    T* to = y + head * 2 * half;
    for (int64_t i = 0; i < half; ++i) {
      const S a = from[i * step], b = from[i * step + second];
      to[i * step] = static_cast<T>(a * cos[i] - b * sin[i]);
      to[i * step + second] = static_cast<T>(a * sin[i] + b * cos[i]);
    }
  }
}

at::Tensor plain(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                 bool interleaved) {
  const at::Tensor c = cos.unsqueeze(-2), s = sin.unsqueeze(-2);  // [(B,) T, 1, R/2]
  const at::Tensor wide = x.to(cos.scalar_type());
  const int64_t half = x.size(-1) / 2;
  at::Tensor a, b;
  if (interleaved) {
    const at::Tensor pairs = wide.unflatten(-1, {half, 2});
    a = pairs.select(-1, 0);
    b = pairs.select(-1, 1);
  } else {
    a = wide.narrow(-1, 0, half);
    b = wide.narrow(-1, half, half);
  }
  const at::Tensor first = a * c - b * s, second = a * s + b * c;
  const at::Tensor y =
      interleaved ? at::stack({first, second}, -1).flatten(-2) : at::cat({first, second}, -1);
  return y.to(x.scalar_type());
}

// cos and sin are [B, T, R/2] or [T, R/2], contiguous, in the math type of x.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                   bool interleaved) {
  if (!fused_on_cpu(x)) return plain(x, cos, sin, interleaved);
  const at::Tensor in = x.stride(3) == 1 ? x : x.contiguous();
  const int64_t length = in.size(1), heads = in.size(2), half = in.size(3) / 2;
  const int64_t row_stride = in.stride(0), token_stride = in.stride(1), head_stride = in.stride(2);
  const int64_t row_angles = cos.dim() == 3 ? length * half : 0;
  at::Tensor out = at::empty(in.sizes(), in.options());
  for_type(in, [&]<class T>(T) {
    using S = simd::Scalar<T>;
    const T* from = in.const_data_ptr<T>();
    const S* c = cos.const_data_ptr<S>();
    const S* s = sin.const_data_ptr<S>();
    T* to = out.mutable_data_ptr<T>();
    const int64_t grain = row_grain(heads * half);
    at::parallel_for(0, in.size(0) * length, grain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / length, token = i % length;
        const int64_t angle = row * row_angles + token * half;
        rotate_token(from + row * row_stride + token * token_stride, head_stride, c + angle,
                     s + angle, to + i * heads * 2 * half, heads, half, interleaved);
      }
    });
  });
  return out;
}

struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, bool interleaved) {
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["interleaved"] = interleaved;
    return rotated(x, cos, sin, interleaved);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const bool interleaved = ctx->saved_data["interleaved"].toBool();
    const at::Tensor dx = rotated(grads[0], saved[0], -saved[1], interleaved);
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  bool interleaved) {
  TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0 && cos.size(-1) == x.size(3) / 2 &&
                  cos.size(-2) == x.size(1) && cos.sizes() == sin.sizes() &&
                  (cos.dim() == 2 || cos.size(0) == x.size(0)),
              "rotate: angles ", cos.sizes(), " do not match x ", x.sizes());
  const at::ScalarType type = math_type(x.scalar_type());
  const at::Tensor c = cos.to(type).contiguous(), s = sin.to(type).contiguous();
  if (reference_ops()) return plain(x, c, s, interleaved);
  return RotateFunction::apply(x, c, s, interleaved);
}

}  // namespace dsv3
