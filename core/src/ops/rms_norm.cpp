// RMSNorm with one pass over the data in the forward pass and one in the backward pass. Saves x and
// rsqrt(mean(x^2) + eps) of each row.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/sdk/ops.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

// y = round(x * rstd) * weight; rows of x are `stride` apart.
template <class T>
DSV3_INLINE void forward_rows(const T* x, int64_t stride, const T* weight, T* y,
                              simd::Scalar<T>* rstd, int64_t begin, int64_t end, int64_t size,
                              double eps) {
  for (int64_t row = begin; row < end; ++row) {
    const T* from = x + row * stride;
    T* to = y + row * size;
    simd::Vec<T> squares{};
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      const auto v = simd::load(from + i, n);
      squares += v * v;
    });
    const simd::Scalar<T> mean = simd::sum<T>(squares) / size;
    const simd::Scalar<T> r = 1 / std::sqrt(mean + static_cast<simd::Scalar<T>>(eps));
    rstd[row] = r;
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      const auto normed = simd::rounded<T>(simd::load(from + i, n) * r);
      simd::store(to + i, normed * simd::load(weight + i, n), n);
    });
  }
}

// With n = x rstd and g = dy weight: dx = rstd (g - n mean(g n)); dweight += dy n, summed over the
// rows in order.
template <class T>
DSV3_INLINE void backward_rows(const T* x, int64_t stride, const T* weight,
                               const simd::Scalar<T>* rstd, const T* dy, T* dx,
                               simd::Scalar<T>* dweight, int64_t begin, int64_t end, int64_t size) {
  using S = simd::Scalar<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* from = x + row * stride;
    const T* upstream = dy + row * size;
    T* to = dx + row * size;
    const S r = rstd[row];
    simd::Vec<T> products{};
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      const auto normed = simd::load(from + i, n) * r;
      const auto d = simd::load(upstream + i, n);
      products += d * simd::load(weight + i, n) * normed;
      simd::store(dweight + i, simd::load(dweight + i, n) + d * simd::rounded<T>(normed), n);
    });
    const S mean = simd::sum<T>(products) / size;
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      const auto normed = simd::load(from + i, n) * r;
      const auto g = simd::load(upstream + i, n) * simd::load(weight + i, n);
      simd::store(to + i, r * (g - normed * mean), n);
    });
  }
}

// target_clones does not work on templates, so each type has its own kernels.
#define DSV3_RMS_NORM(T)                                                                           \
  DSV3_CLONES void forward_kernel(const T* x, int64_t stride, const T* weight, T* y,               \
                                  simd::Scalar<T>* rstd, int64_t begin, int64_t end, int64_t size, \
                                  double eps) {                                                    \
    forward_rows(x, stride, weight, y, rstd, begin, end, size, eps);                               \
  }                                                                                                \
  DSV3_CLONES void backward_kernel(                                                                \
      const T* x, int64_t stride, const T* weight, const simd::Scalar<T>* rstd, const T* dy,       \
      T* dx, simd::Scalar<T>* dweight, int64_t begin, int64_t end, int64_t size) {                 \
    backward_rows(x, stride, weight, rstd, dy, dx, dweight, begin, end, size);                     \
  }
DSV3_RMS_NORM(float)
DSV3_RMS_NORM(double)
DSV3_RMS_NORM(c10::BFloat16)
#undef DSV3_RMS_NORM

// Returns x as [N, D] with dense rows: a view where possible, e.g. for slices of a projection.
at::Tensor as_rows(const at::Tensor& x) {
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    const at::Tensor rows = as_rows(x);
    const at::Tensor scale = weight.contiguous();
    const int64_t size = rows.size(1), stride = rows.stride(0);
    at::Tensor y = at::empty(x.sizes(), x.options());
    at::Tensor rstd = at::empty({rows.size(0)}, x.options().dtype(math_type(x.scalar_type())));
    for_type(x, [&]<class T>(T) {
      const T* from = rows.const_data_ptr<T>();
      const T* with = scale.const_data_ptr<T>();
      T* to = y.mutable_data_ptr<T>();
      auto* saved = rstd.mutable_data_ptr<simd::Scalar<T>>();
      at::parallel_for(0, rows.size(0), row_grain(size), [=](int64_t begin, int64_t end) {
        forward_kernel(from, stride, with, to, saved, begin, end, size, eps);
      });
    });
    ctx->save_for_backward({x, weight, rstd});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor rows = as_rows(saved[0]);
    const at::Tensor weight = saved[1].contiguous();
    const at::Tensor& rstd = saved[2];
    const at::Tensor dy = grads[0].contiguous();
    const int64_t count = rows.size(0), size = rows.size(1), stride = rows.stride(0);
    // The row blocks depend only on the shape and their sums are added in order, so the weight's
    // gradient is bit-identical for any number of threads.
    const int64_t block = std::max<int64_t>(32, (count + 63) / 64);
    const int64_t blocks = (count + block - 1) / block;
    at::Tensor dx = at::empty(saved[0].sizes(), rows.options());
    at::Tensor partial = at::zeros({blocks, size}, rstd.options());
    for_type(rows, [&]<class T>(T) {
      const T* from = rows.const_data_ptr<T>();
      const T* with = weight.const_data_ptr<T>();
      const auto* scale = rstd.const_data_ptr<simd::Scalar<T>>();
      const T* upstream = dy.const_data_ptr<T>();
      T* to = dx.mutable_data_ptr<T>();
      auto* sums = partial.mutable_data_ptr<simd::Scalar<T>>();
      at::parallel_for(0, blocks, 1, [=](int64_t first, int64_t last) {
        for (int64_t b = first; b < last; ++b)
          backward_kernel(from, stride, with, scale, upstream, to, sums + b * size, b * block,
                          std::min(count, (b + 1) * block), size);
      });
    });
    return {dx, partial.sum(0).to(weight.scalar_type()), at::Tensor()};
  }
};

at::Tensor plain(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(math_type(x.scalar_type()));
  const at::Tensor rstd = (wide.square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  return (wide * rstd).to(x.scalar_type()) * weight;
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1), "rms_norm: weight ",
              weight.sizes(), " does not match x ", x.sizes());
  const bool fused = fused_on_cpu(x) && weight.scalar_type() == x.scalar_type() && x.numel() > 0;
  return fused ? RmsNormFunction::apply(x, weight, eps) : plain(x, weight, eps);
}

}  // namespace dsv3
