// Runs one GEMM per group of rows. Each GEMM writes directly to a slice of the result. On a CPU
// each GEMM runs on one thread and the groups are spread over the threads, because many small GEMMs
// cannot use several threads well.
#include <algorithm>
#include <atomic>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <dsv3/sdk/ops.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

struct Task {
  int64_t group, begin, size;
};

// The row range of each group, including empty groups. Groups on the meta device have equal sizes.
std::vector<Task> groups_of(const at::Tensor& ends, int64_t rows) {
  const int64_t count = ends.numel();
  const at::Tensor host = ends.is_meta()
                              ? at::arange(1, count + 1).mul(rows).floor_divide(count).to(at::kInt)
                              : ends.cpu();
  const int32_t* end = host.const_data_ptr<int32_t>();
  std::vector<Task> groups;
  for (int64_t group = 0, begin = 0; group < count; begin = end[group++])
    groups.push_back({group, begin, end[group] - begin});
  return groups;
}

// Splits groups into pieces of about 256 rows, to balance the work between threads. The pieces
// depend only on the groups, so results are bit-identical for any number of threads.
std::vector<Task> pieces_of(const std::vector<Task>& groups) {
  std::vector<Task> pieces;
  for (const Task& group : groups) {
    const int64_t count = (group.size + 255) / 256;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = group.size * i / count, last = group.size * (i + 1) / count;
      pieces.push_back({group.group, group.begin + first, last - first});
    }
  }
  return pieces;
}

template <class Body>
void run(const std::vector<Task>& tasks, bool on_cpu, const Body& body) {
  if (!on_cpu) {
    for (const Task& task : tasks) body(task);
    return;
  }
  std::atomic<size_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    // Autograd is enabled in worker threads and would otherwise track views of shared tensors.
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (size_t i; (i = next++) < tasks.size();) body(tasks[i]);
  });
}

// x [N, K] and matrices [E, K, M] -> [N, M]
at::Tensor products(const at::Tensor& x, const at::Tensor& matrices,
                    const std::vector<Task>& groups) {
  at::Tensor y = at::empty({x.size(0), matrices.size(2)}, x.options());
  run(x.is_cpu() ? pieces_of(groups) : groups, x.is_cpu(), [&](const Task& task) {
    at::Tensor out = y.narrow(0, task.begin, task.size);
    at::mm_out(out, x.narrow(0, task.begin, task.size), matrices.select(0, task.group));
  });
  return y;
}

// dy [N, M] and x [N, K] -> [E, M, K]. If there are few groups, splits each of them in two along M.
at::Tensor weight_gradient(const at::Tensor& dy, const at::Tensor& x,
                           const std::vector<Task>& groups) {
  const int64_t height = dy.size(1), count = static_cast<int64_t>(groups.size());
  at::Tensor dweight = at::empty({count, height, x.size(1)}, x.options());
  const int64_t cuts = count < 32 ? 2 : 1;
  std::vector<Task> tasks;
  for (int64_t group = 0; group < count; ++group)
    for (int64_t i = 0; i < cuts; ++i) {
      const int64_t first = height * i / cuts, last = height * (i + 1) / cuts;
      if (first < last) tasks.push_back({group, first, last - first});
    }
  run(tasks, x.is_cpu(), [&](const Task& task) {
    const Task& rows = groups[task.group];
    at::Tensor out = dweight.select(0, task.group).narrow(0, task.begin, task.size);
    if (rows.size == 0) {
      out.zero_();
      return;
    }
    const at::Tensor upstream =
        dy.narrow(0, rows.begin, rows.size).narrow(1, task.begin, task.size);
    at::mm_out(out, upstream.t(), x.narrow(0, rows.begin, rows.size));
  });
  return dweight;
}

struct GroupedLinearFunction : torch::autograd::Function<GroupedLinearFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& ends) {
    ctx->save_for_backward({x, weight, ends});
    return products(x, weight.transpose(1, 2), groups_of(ends, x.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<Task> groups = groups_of(saved[2], saved[0].size(0));
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = products(dy, saved[1], groups);
    if (ctx->needs_input_grad(1)) dweight = weight_gradient(dy, saved[0], groups);
    return {dx, dweight, at::Tensor()};
  }
};

// Computes one matrix product per group and concatenates the results, with operators that LibTorch
// can differentiate.
at::Tensor plain(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& ends) {
  std::vector<at::Tensor> parts;
  for (const Task& group : groups_of(ends, x.size(0)))
    parts.push_back(
        at::matmul(x.narrow(0, group.begin, group.size), weight.select(0, group.group).t()));
  return at::cat(parts);
}

// Whether LibTorch's _grouped_mm supports `weight` [E, M, K], whose rows must be multiples of 16
// bytes long. _grouped_mm is the only implementation that does not read `ends` on the host.
bool has_aligned_rows(const at::Tensor& weight) {
  return weight.size(1) % 8 == 0 && weight.size(2) % 8 == 0;
}

}  // namespace

at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& ends) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 3 && x.size(1) == weight.size(2) &&
                  ends.numel() == weight.size(0) && ends.scalar_type() == at::kInt,
              "grouped_linear: x ", x.sizes(), ", weight ", weight.sizes(), " and ends ",
              ends.sizes(), " are incompatible");
  if (reference_ops()) return plain(x, weight, ends);
  if (on_cuda(x) && x.scalar_type() == at::kBFloat16 && has_aligned_rows(weight))
    return at::_grouped_mm(x.contiguous(), weight.transpose(1, 2), ends);
  return GroupedLinearFunction::apply(x.contiguous(), weight, ends);
}

}  // namespace dsv3
