// gather_rows and sum_rows are each other's backward operation. Both write each output element
// once, in a fixed order.
#include <cstring>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <dsv3/sdk/expert_rows.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

template <class T>
DSV3_INLINE void sum_tokens(const T* y, const int64_t* row, T* out, int64_t begin, int64_t end,
                            int64_t slots, int64_t size) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t* rows = row + token * slots;
    simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
      auto total = simd::load(y + rows[0] * size + i, n);
      for (int64_t slot = 1; slot < slots; ++slot)
        total += simd::load(y + rows[slot] * size + i, n);
      simd::store(out + token * size + i, total, n);
    });
  }
}

#define DSV3_SUM_ROWS(T)                                                                          \
  DSV3_CLONES void sum_kernel(const T* y, const int64_t* row, T* out, int64_t begin, int64_t end, \
                              int64_t slots, int64_t size) {                                      \
    sum_tokens(y, row, out, begin, end, slots, size);                                             \
  }
DSV3_SUM_ROWS(float)
DSV3_SUM_ROWS(double)
DSV3_SUM_ROWS(c10::BFloat16)
#undef DSV3_SUM_ROWS

at::Tensor gather(const at::Tensor& x, const at::Tensor& source, int64_t slots) {
  if (!fused_on_cpu(x)) return x.index_select(0, source.div(slots, "floor"));
  const at::Tensor in = x.contiguous();
  at::Tensor out = at::empty({source.numel(), x.size(1)}, x.options());
  if (x.is_meta()) return out;
  const int64_t* from = source.const_data_ptr<int64_t>();
  const auto* data = static_cast<const char*>(in.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t bytes = x.size(1) * x.element_size();
  at::parallel_for(0, source.numel(), row_grain(x.size(1)), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(to + i * bytes, data + from[i] / slots * bytes, bytes);
  });
  return out;
}

at::Tensor sum(const at::Tensor& y, const at::Tensor& row) {
  const int64_t tokens = row.size(0), slots = row.size(1), size = y.size(1);
  if (!fused_on_cpu(y))
    return y.index_select(0, row.reshape({-1})).view({tokens, slots, size}).sum(1);
  const at::Tensor in = y.contiguous();
  at::Tensor out = at::empty({tokens, size}, y.options());
  for_type(y, [&]<class T>(T) {
    const T* from = in.const_data_ptr<T>();
    const int64_t* rows = row.const_data_ptr<int64_t>();
    T* to = out.mutable_data_ptr<T>();
    at::parallel_for(0, tokens, row_grain(size * slots), [=](int64_t begin, int64_t end) {
      sum_kernel(from, rows, to, begin, end, slots, size);
    });
  });
  return out;
}

struct GatherFunction : torch::autograd::Function<GatherFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& source,
                            const at::Tensor& row) {
    ctx->save_for_backward({row});
    return gather(x, source, row.size(1));
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {sum(grads[0], ctx->get_saved_variables()[0]), at::Tensor(), at::Tensor()};
  }
};

struct SumFunction : torch::autograd::Function<SumFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& source,
                            const at::Tensor& row) {
    ctx->save_for_backward({source});
    ctx->saved_data["slots"] = row.size(1);
    return sum(y, row);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const int64_t slots = ctx->saved_data["slots"].toInt();
    return {gather(grads[0], ctx->get_saved_variables()[0], slots), at::Tensor(), at::Tensor()};
  }
};

// Stable counting sort: the first pass counts each expert's tokens, the second pass assigns rows.
ExpertRows counting_sort(const at::Tensor& chosen, int64_t experts) {
  const at::Tensor flat = chosen.contiguous();
  const int64_t total = flat.numel();
  const auto longs = flat.options().dtype(at::kLong);
  ExpertRows rows{at::empty({total}, longs), at::empty(flat.sizes(), longs),
                  at::empty({experts}, longs.dtype(at::kInt)), at::zeros({experts}, longs)};
  if (chosen.is_meta()) return rows;
  const int64_t* expert = flat.const_data_ptr<int64_t>();
  int64_t* count = rows.counts.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < total; ++i) ++count[expert[i]];
  std::vector<int64_t> next(experts);
  int32_t* end = rows.ends.mutable_data_ptr<int32_t>();
  for (int64_t e = 0, begin = 0; e < experts; ++e) {
    next[e] = begin;
    begin += count[e];
    end[e] = static_cast<int32_t>(begin);
  }
  int64_t* source = rows.source.mutable_data_ptr<int64_t>();
  int64_t* row = rows.row.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < total; ++i) {
    row[i] = next[expert[i]]++;
    source[row[i]] = i;
  }
  return rows;
}

}  // namespace

ExpertRows sort_by_expert(const at::Tensor& chosen, int64_t experts) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK(chosen.dim() == 2 && chosen.scalar_type() == at::kLong,
              "sort_by_expert: chosen must be int64 [tokens, k], not ", chosen.sizes());
  if (on_cpu(chosen) && !reference_ops()) return counting_sort(chosen, experts);
  ExpertRows rows;
  const at::Tensor flat = chosen.reshape({-1});
  rows.source = std::get<1>(flat.sort(/*stable=*/true, 0, /*descending=*/false));
  rows.row = at::empty_like(rows.source)
                 .scatter_(0, rows.source, at::arange(flat.numel(), flat.options()))
                 .view(chosen.sizes());
  rows.counts = at::zeros({experts}, flat.options()).scatter_add_(0, flat, at::ones_like(flat));
  rows.ends = rows.counts.cumsum(0).to(at::kInt);
  return rows;
}

at::Tensor gather_rows(const at::Tensor& x, const ExpertRows& rows) {
  TORCH_CHECK(x.dim() == 2 && x.size(0) == rows.row.size(0), "gather_rows: x ", x.sizes(),
              " does not match rows of shape ", rows.row.sizes());
  if (reference_ops()) return x.index_select(0, rows.source.div(rows.row.size(1), "floor"));
  return GatherFunction::apply(x, rows.source, rows.row);
}

at::Tensor sum_rows(const at::Tensor& y, const ExpertRows& rows) {
  TORCH_CHECK(y.dim() == 2 && y.size(0) == rows.row.numel(), "sum_rows: y ", y.sizes(),
              " does not match rows of shape ", rows.row.sizes());
  if (reference_ops())
    return at::zeros({rows.row.size(0), y.size(1)}, y.options())
        .index_add(0, rows.source.div(rows.row.size(1), "floor"), y);
  return SumFunction::apply(y, rows.source, rows.row);
}

}  // namespace dsv3
