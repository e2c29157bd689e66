#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/ops.h>

#include "ops/kernels.h"

namespace dsv3 {
namespace {

std::pair<at::Tensor, at::Tensor> reference(const at::Tensor& x, const at::Tensor& weight,
                                            const at::Tensor& targets, double z_weight,
                                            double scale) {
  const at::Tensor logits = x.matmul(weight.t()).to(math_type(x.scalar_type()));
  const at::Tensor log_z = logits.logsumexp(1);
  const at::Tensor picked = logits.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1);
  const at::Tensor entropy = log_z - picked;
  const at::Tensor zero = at::zeros({}, entropy.options());
  const at::Tensor valid = targets.ge(0);
  const at::Tensor loss = at::where(valid, entropy + z_weight * log_z.square(), zero).sum() * scale;
  return {loss, at::where(valid, entropy, zero).sum().detach()};
}

// The forward pass computes the gradients while a chunk's logits are in memory. The backward pass
// only returns them.
struct LinearCrossEntropyBackward final : torch::autograd::Node {
  at::Tensor dx, dw;

  variable_list apply(variable_list&& grads) override {
    const at::Tensor& grad = grads[0];
    if (!grad.defined()) return {at::Tensor(), at::Tensor()};
    if (!dx.defined() && !dw.defined())
      throw Error("backward of linear_cross_entropy ran twice; its gradients are not saved");
    // If the gradient is 1, skipping the multiplication saves two passes on a CPU. On other
    // devices, reading the value would synchronise.
    const bool unchanged = grad.is_cpu() && grad.item<double>() == 1;
    for (at::Tensor* tensor : {&dx, &dw})
      if (tensor->defined() && !unchanged) tensor->mul_(grad);
    return {std::move(dx), std::move(dw)};
  }
  void release_variables() override {
    dx.reset();
    dw.reset();
  }
  std::string name() const override { return "dsv3::LinearCrossEntropyBackward"; }
};

using Floats = simd::Vec<float>;
constexpr int64_t lanes = simd::Math<float>::lanes;
constexpr float infinity = std::numeric_limits<float>::infinity();

/// Loads the first `count` lanes and pads with -inf, which changes neither sum nor maximum.
template <class T>
DSV3_INLINE Floats load_padded(const T* from, int64_t count) {
  Floats value = simd::load(from, count);
  for (int64_t lane = count; lane < lanes; ++lane) value[lane] = -infinity;
  return value;
}

template <class T>
DSV3_INLINE float largest_of(const T* row, int64_t size) {
  Floats most = Floats{} - infinity;
  simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
    const Floats value = load_padded(row + i, n);
    most = value > most ? value : most;
  });
  float largest = -infinity;
  for (int64_t lane = 0; lane < lanes; ++lane) largest = std::max(largest, most[lane]);
  return largest;
}

/// The largest value in a row and the sum of exp(value - largest). A NaN in the row makes the sum
/// NaN.
struct Stats {
  float largest, sum;
};

template <class T>
DSV3_INLINE Stats stats_of(const T* row, int64_t size) {
  const float largest = largest_of(row, size);
  Floats sums[2] = {};  // two independent chains of additions hide each other's latency
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    sums[0] += simd::exp(simd::load(row + i) - largest);
    sums[1] += simd::exp(simd::load(row + i + lanes) - largest);
  }
  if (i + lanes <= size) {
    sums[0] += simd::exp(simd::load(row + i) - largest);
    i += lanes;
  }
  if (i < size) sums[1] += simd::exp(load_padded(row + i, size - i) - largest);
  return {largest, simd::sum<float>(sums[0] + sums[1])};
}

/// row = exp(row - largest) * factor, in place.
template <class T>
DSV3_INLINE void write_to(T* row, int64_t size, float largest, float factor) {
  simd::each_vector<T>(size, [&](int64_t i, int64_t n) DSV3_ALWAYS_INLINE {
    simd::store(row + i, simd::exp(simd::load(row + i, n) - largest) * factor, n);
  });
}

DSV3_CLONES Stats row_stats(const float* row, int64_t size) {
  return stats_of(row, size);
}
DSV3_CLONES Stats row_stats(const c10::BFloat16* row, int64_t size) {
  return stats_of(row, size);
}
DSV3_CLONES void write_softmax(float* row, int64_t size, float largest, float factor) {
  write_to(row, size, largest, factor);
}
DSV3_CLONES void write_softmax(c10::BFloat16* row, int64_t size, float largest, float factor) {
  write_to(row, size, largest, factor);
}

/// Arguments that are the same for all chunks of one call.
struct Job {
  double z_weight, scale;
  int64_t chunk;
  bool need_dx, need_dw;
  at::ScalarType type;  // of the losses

  bool gradient() const { return need_dx || need_dw; }
};

/// Returns two scalars for a chunk: {loss with z-loss and scale, plain loss}. Overwrites logits [R,
/// V] with their gradient. Uses LibTorch's operators, so it works for any device and dtype.
std::pair<at::Tensor, at::Tensor> chunk_by_operators(at::Tensor& logits, const at::Tensor& targets,
                                                     const Job& job) {
  at::Tensor wide = logits.to(job.type);
  const at::Tensor log_z = wide.logsumexp(1);
  const at::Tensor index = targets.clamp_min(0).unsqueeze(1);
  const at::Tensor valid = targets.ge(0).to(job.type);
  const at::Tensor entropy = (log_z - wide.gather(1, index).squeeze(1)) * valid;
  const at::Tensor loss = (entropy + job.z_weight * log_z.square() * valid).sum() * job.scale;
  if (job.gradient()) {
    const at::Tensor factor = (2 * job.z_weight * log_z + 1) * valid * job.scale;
    wide.sub_(log_z.unsqueeze(1)).exp_().mul_(factor.unsqueeze(1));
    wide.scatter_add_(1, index, (-job.scale * valid).unsqueeze(1));
    if (!wide.is_same(logits)) logits.copy_(wide);
  }
  return {loss, entropy.sum()};
}

/// Like chunk_by_operators(), but sums in float64. Only for contiguous fp32 or bf16 logits on the
/// CPU and valid targets. Makes two passes over each row, which stays in the CPU cache, and a third
/// one that writes the gradient.
template <class T>
std::pair<at::Tensor, at::Tensor> chunk_by_rows(at::Tensor& logits, const at::Tensor& targets,
                                                const Job& job) {
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  if (logits.is_meta())
    return {at::empty({}, logits.options().dtype(at::kDouble)),
            at::empty({}, logits.options().dtype(at::kDouble))};
  T* const data = logits.data_ptr<T>();
  const int64_t* classes = targets.const_data_ptr<int64_t>();
  std::vector<double> losses(rows), entropies(rows);
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = data + i * vocab;
      T& target = row[classes[i]];
      const float picked = float(target);
      const auto [largest, sum] = row_stats(row, vocab);
      const double log_z = largest + std::log(double(sum));
      entropies[i] = log_z - picked;
      losses[i] = (entropies[i] + job.z_weight * log_z * log_z) * job.scale;
      if (!job.gradient()) continue;
      const double factor = job.scale * (1 + 2 * job.z_weight * log_z) / sum;
      write_softmax(row, vocab, largest, float(factor));
      const double softmax = std::exp(double(picked) - largest) * factor;
      target = T(float(softmax - job.scale));  // rounded once
    }
  });
  // Sums in row order, so that the result does not depend on the number of threads.
  const auto sum_of = [](const std::vector<double>& values) {
    return at::full({}, std::accumulate(values.begin(), values.end(), 0.0), at::kDouble);
  };
  return {sum_of(losses), sum_of(entropies)};
}

std::pair<at::Tensor, at::Tensor> chunk_losses(at::Tensor& logits, const at::Tensor& targets,
                                               const Job& job) {
  if (on_cpu(logits) && logits.scalar_type() == at::kFloat)
    return chunk_by_rows<float>(logits, targets, job);
  if (on_cpu(logits) && logits.scalar_type() == at::kBFloat16)
    return chunk_by_rows<c10::BFloat16>(logits, targets, job);
  return chunk_by_operators(logits, targets, job);
}

void add_to(at::Tensor& sum, const at::Tensor& value) {
  sum = sum.defined() ? sum + value : value;
}

/// Adds a chunk's contribution to `dw` [V, D]. If `widen`, low-precision products are summed in
/// fp32.
void add_weight_gradient(at::Tensor& dw, const at::Tensor& dlogits, const at::Tensor& x,
                         bool widen) {
  if (dw.defined() && !widen) {
    dw.addmm_(dlogits.t(), x);
    return;
  }
  const at::Tensor product = at::mm(dlogits.t(), x);
  if (dw.defined())
    dw.add_(product);
  else
    dw = widen ? product.to(at::kFloat) : product;
}

/// Number of rows per chunk; all chunks have about the same size. Every chunk costs a pass over dw,
/// so on the CPU its logits may take as much memory as dw (D rows), or 64 MiB if that is more.
int64_t chunk_rows(const at::Tensor& x, const at::Tensor& weight, int64_t chunk) {
  const int64_t rows = x.size(0), vocab = weight.size(0);
  if (chunk <= 0) {
    const int64_t bytes = vocab * int64_t(weight.element_size());
    chunk = on_cpu(x) ? std::max(x.size(1), (int64_t(64) << 20) / bytes) : 4096;
  }
  const int64_t chunks = (rows + chunk - 1) / chunk;
  return chunks > 1 ? (rows + chunks - 1) / chunks : rows;
}

void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
              "linear_cross_entropy: x [N, D] and weight [V, D] have incompatible shapes: ",
              x.sizes(), ", ", weight.sizes());
  TORCH_CHECK(
      targets.dim() == 1 && targets.size(0) == x.size(0) && targets.scalar_type() == at::kLong,
      "linear_cross_entropy: targets must be int64 [N]");
  if (!targets.is_cpu() || targets.numel() == 0)
    return;  // the kernels for other devices check their indices
  const int64_t largest = targets.max().item<int64_t>();
  if (largest >= weight.size(0))
    throw Error("target " + std::to_string(largest) + " is outside the vocabulary of " +
                    std::to_string(weight.size(0)) + "; set model.vocab to the tokenizer's size",
                ExitCode::data);
}

struct Result {
  at::Tensor loss, plain, dx, dw;
};

Result compute(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
               const Job& job) {
  const int64_t total = x.size(0);
  Result result;
  if (job.need_dx) result.dx = at::empty_like(x);
  const int64_t step = total > 0 ? chunk_rows(x, weight, job.chunk) : 1;
  at::Tensor logits = at::empty({std::min(step, total), weight.size(0)}, x.options());
  const at::ScalarType type = weight.scalar_type();
  const bool widen = step < total && type != math_type(type);
  at::Tensor dw;
  for (int64_t begin = 0; begin < total; begin += step) {
    const int64_t rows = std::min(step, total - begin);
    at::Tensor part = logits.narrow(0, 0, rows);
    const at::Tensor x_part = x.narrow(0, begin, rows);
    at::mm_out(part, x_part, weight.t());
    const auto [loss, plain] = chunk_losses(part, targets.narrow(0, begin, rows), job);
    add_to(result.loss, loss);
    add_to(result.plain, plain);
    if (job.need_dx) {
      at::Tensor dx_part = result.dx.narrow(0, begin, rows);
      at::mm_out(dx_part, part, weight);
    }
    if (job.need_dw) add_weight_gradient(dw, part, x_part, widen);
  }
  logits.reset();  // frees the memory before dw is cast
  if (job.need_dw) result.dw = dw.defined() ? dw.to(type) : at::zeros_like(weight);
  for (at::Tensor* sum : {&result.loss, &result.plain})
    *sum = sum->defined() ? sum->to(job.type) : at::zeros({}, x.options().dtype(job.type));
  return result;
}

/// Skips rows without a target, but only on the CPU, because other devices would have to
/// synchronise.
Result compute_valid(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                     const Job& job) {
  if (!on_cpu(x)) return compute(x, weight, targets, job);
  // For meta tensors, assume that only a few rows have no target.
  const at::Tensor valid =
      x.is_meta() ? at::arange(x.size(0), targets.options()) : targets.ge(0).nonzero().squeeze(1);
  if (!x.is_meta() && valid.size(0) == x.size(0)) return compute(x, weight, targets, job);
  Result result = compute(x.index_select(0, valid), weight, targets.index_select(0, valid), job);
  if (job.need_dx) result.dx = at::zeros_like(x).index_copy_(0, valid, result.dx);
  return result;
}

}  // namespace

std::pair<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                       const at::Tensor& weight,
                                                       const at::Tensor& targets, double z_weight,
                                                       double scale, int64_t chunk) {
  check(x, weight, targets);
  if (reference_ops()) return reference(x, weight, targets, z_weight, scale);

  const Job job{.z_weight = z_weight,
                .scale = scale,
                .chunk = chunk,
                .need_dx = torch::autograd::compute_requires_grad(x),
                .need_dw = torch::autograd::compute_requires_grad(weight),
                .type = math_type(x.scalar_type())};
  Result result;
  {
    const at::NoGradGuard no_grad;
    result = compute_valid(x.contiguous(), weight, targets.contiguous(), job);
  }
  if (job.gradient()) {
    std::shared_ptr<LinearCrossEntropyBackward> node(new LinearCrossEntropyBackward,
                                                     torch::autograd::deleteNode);
    node->dx = std::move(result.dx);
    node->dw = std::move(result.dw);
    node->set_next_edges(torch::autograd::collect_next_edges(x, weight));
    node->add_input_metadata(result.loss);
    torch::autograd::impl::set_gradient_edge(result.loss, {node, 0});
  }
  return {result.loss, result.plain};
}

}  // namespace dsv3
