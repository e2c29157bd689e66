// One GEMM a group of rows, written straight into slices of the results: no copies, no
// concatenation.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <dsv3/sdk/ops.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

// Calls body(group, first row, rows), empty groups included.
template <class Body>
void each_group(const at::Tensor& ends, const Body& body) {
  const at::Tensor host = ends.cpu();
  const int32_t* end = host.const_data_ptr<int32_t>();
  int64_t begin = 0;
  for (int64_t group = 0; group < host.numel(); ++group) {
    body(group, begin, end[group] - begin);
    begin = end[group];
  }
}

struct GroupedLinearFunction : torch::autograd::Function<GroupedLinearFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, const at::Tensor& ends) {
    ctx->save_for_backward({x, weight, ends});
    at::Tensor y = at::empty({x.size(0), weight.size(1)}, x.options());
    each_group(ends, [&](int64_t group, int64_t begin, int64_t rows) {
      if (rows == 0) return;
      at::Tensor out = y.narrow(0, begin, rows);
      at::mm_out(out, x.narrow(0, begin, rows), weight.select(0, group).t());
    });
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &ends = saved[2];
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = at::empty(x.sizes(), x.options());
    if (ctx->needs_input_grad(1)) dweight = at::empty(weight.sizes(), weight.options());
    each_group(ends, [&](int64_t group, int64_t begin, int64_t rows) {
      const at::Tensor upstream = dy.narrow(0, begin, rows);
      if (dx.defined() && rows > 0) {
        at::Tensor out = dx.narrow(0, begin, rows);
        at::mm_out(out, upstream, weight.select(0, group));
      }
      if (dweight.defined()) {
        at::Tensor out = dweight.select(0, group);
        if (rows > 0)
          at::mm_out(out, upstream.t(), x.narrow(0, begin, rows));
        else
          out.zero_();
      }
    });
    return {dx, dweight, at::Tensor()};
  }
};

// Slices and one concatenation, differentiated by LibTorch.
at::Tensor plain(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& ends) {
  std::vector<at::Tensor> parts;
  each_group(ends, [&](int64_t group, int64_t begin, int64_t rows) {
    parts.push_back(at::matmul(x.narrow(0, begin, rows), weight.select(0, group).t()));
  });
  return at::cat(parts);
}

}  // namespace

at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& ends) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 3 && x.size(1) == weight.size(2) &&
                  ends.numel() == weight.size(0) && ends.scalar_type() == at::kInt,
              "grouped_linear: x ", x.sizes(), ", weight ", weight.sizes(), " and ends ",
              ends.sizes(), " do not fit");
  if (reference_ops()) return plain(x, weight, ends);
  // The one kernel that needs no look at `ends` on the host.
  if (x.is_cuda() && x.scalar_type() == at::kBFloat16)
    return at::_grouped_mm(x.contiguous(), weight.transpose(1, 2), ends);
  return GroupedLinearFunction::apply(x.contiguous(), weight, ends);
}

}  // namespace dsv3
