#include <cmath>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/ops.h>

#include "ops/softmax_rows.h"

namespace dsv3 {
namespace {

using torch::autograd::variable_list;

at::ScalarType loss_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

std::pair<at::Tensor, at::Tensor> reference(const at::Tensor& x, const at::Tensor& weight,
                                            const at::Tensor& targets, double z_weight,
                                            double scale) {
  const at::Tensor logits = x.matmul(weight.t()).to(loss_type(x));
  const at::Tensor log_z = logits.logsumexp(1);
  const at::Tensor picked = logits.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1);
  const at::Tensor entropy = log_z - picked;
  const at::Tensor zero = at::zeros({}, entropy.options());
  const at::Tensor valid = targets.ge(0);
  const at::Tensor loss = at::where(valid, entropy + z_weight * log_z.square(), zero).sum() * scale;
  return {loss, at::where(valid, entropy, zero).sum().detach()};
}

// Gradients were made in the forward pass, while a chunk's logits were there; backward only hands
// them on.
struct LinearCrossEntropyBackward final : torch::autograd::Node {
  at::Tensor dx, dw;

  variable_list apply(variable_list&& grads) override {
    const at::Tensor& grad = grads[0];
    if (!grad.defined()) return {at::Tensor(), at::Tensor()};
    if (!dx.defined() && !dw.defined())
      throw Error("the backward of linear_cross_entropy ran twice; it keeps nothing for a second");
    // On the host a look is cheaper than two passes; on a device it would wait for the device.
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

/// One call's constants, and where its chunks put their results.
struct Job {
  double z_weight, scale;
  bool gradient;
  at::ScalarType type;  // of the losses
};

/// Two scalars of a chunk: {z and scale included, plain}; logits [R, V] become their gradient.
/// For any device and dtype, in LibTorch's operators.
std::pair<at::Tensor, at::Tensor> chunk_by_operators(at::Tensor& logits, const at::Tensor& targets,
                                                     const Job& job) {
  at::Tensor wide = logits.to(job.type);
  const at::Tensor log_z = wide.logsumexp(1);
  const at::Tensor index = targets.clamp_min(0).unsqueeze(1);
  const at::Tensor valid = targets.ge(0).to(job.type);
  const at::Tensor entropy = (log_z - wide.gather(1, index).squeeze(1)) * valid;
  const at::Tensor loss = (entropy + job.z_weight * log_z.square() * valid).sum() * job.scale;
  if (job.gradient) {
    const at::Tensor factor = (2 * job.z_weight * log_z + 1) * valid * job.scale;
    wide.sub_(log_z.unsqueeze(1)).exp_().mul_(factor.unsqueeze(1));
    wide.scatter_add_(1, index, (-job.scale * valid).unsqueeze(1));
    if (!wide.is_same(logits)) logits.copy_(wide);
  }
  return {loss, entropy.sum()};
}

/// The same for contiguous fp32 or bf16 logits on the CPU and valid targets only: two passes over a
/// row that stays in the cache, and a third that writes the gradient.
template <class T>
std::pair<double, double> chunk_by_rows(T* logits, const int64_t* targets, int64_t rows,
                                        int64_t vocab, const Job& job) {
  std::vector<double> losses(rows), entropies(rows);
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = logits + i * vocab;
      T& target = row[targets[i]];
      const float picked = float(target);
      const softmax_rows::Stats stats = softmax_rows::stats(row, vocab);
      const double log_z = stats.largest + std::log(double(stats.sum));
      entropies[i] = log_z - picked;
      losses[i] = (entropies[i] + job.z_weight * log_z * log_z) * job.scale;
      if (!job.gradient) continue;
      const double factor = job.scale * (1 + 2 * job.z_weight * log_z) / stats.sum;
      softmax_rows::write(row, vocab, stats.largest, float(factor));
      const double own = std::exp(double(picked) - stats.largest) * factor;
      target = T(float(own - job.scale));  // in one rounding
    }
  });
  // Summed here in row order, so that the number of threads does not matter.
  double loss = 0, entropy = 0;
  for (int64_t i = 0; i < rows; ++i) {
    loss += losses[i];
    entropy += entropies[i];
  }
  return {loss, entropy};
}

/// Sums over chunks on the host or on the device, whichever the chunks give.
struct Sums {
  double host_loss = 0, host_plain = 0;
  at::Tensor loss, plain;

  void add(at::Tensor& logits, const at::Tensor& targets, const Job& job) {
    const int64_t rows = logits.size(0), vocab = logits.size(1);
    std::pair<double, double> sums;
    if (logits.is_cpu() && logits.scalar_type() == at::kFloat) {
      sums = chunk_by_rows(logits.data_ptr<float>(), targets.const_data_ptr<int64_t>(), rows, vocab,
                           job);
    } else if (logits.is_cpu() && logits.scalar_type() == at::kBFloat16) {
      sums = chunk_by_rows(logits.data_ptr<c10::BFloat16>(), targets.const_data_ptr<int64_t>(),
                           rows, vocab, job);
    } else {
      auto [chunk_loss, chunk_plain] = chunk_by_operators(logits, targets, job);
      loss = loss.defined() ? loss + chunk_loss : chunk_loss;
      plain = plain.defined() ? plain + chunk_plain : chunk_plain;
    }
    host_loss += sums.first;
    host_plain += sums.second;
  }
  std::pair<at::Tensor, at::Tensor> result(const at::TensorOptions& options) const {
    if (loss.defined()) return {loss, plain};
    return {at::full({}, host_loss, options), at::full({}, host_plain, options)};
  }
};

/// dw [V, D] summed over chunks. A sum of several low-precision products is kept in fp32.
class WeightGradient {
 public:
  WeightGradient(const at::Tensor& weight, bool several) : weight_(weight) {
    const bool low = weight.scalar_type() != at::kFloat && weight.scalar_type() != at::kDouble;
    widen_ = low && several;
  }
  void add(const at::Tensor& dlogits, const at::Tensor& x) {
    if (widen_) {
      const at::Tensor product = at::mm(dlogits.t(), x);
      if (sum_.defined())
        sum_.add_(product);
      else
        sum_ = product.to(at::kFloat);
    } else if (sum_.defined()) {
      sum_.addmm_(dlogits.t(), x);
    } else {
      sum_ = at::mm(dlogits.t(), x);
    }
  }
  at::Tensor take() {
    if (!sum_.defined()) return at::zeros_like(weight_);
    return sum_.to(weight_.scalar_type());
  }

 private:
  const at::Tensor& weight_;
  bool widen_ = false;
  at::Tensor sum_;
};

/// Rows of a chunk. On the CPU at most what dw takes anyway (D rows; every chunk costs a pass over
/// dw), or 64 MiB where that is more; equal chunks.
int64_t chunk_rows(const at::Tensor& x, const at::Tensor& weight, int64_t chunk) {
  const int64_t rows = x.size(0), vocab = weight.size(0);
  if (chunk <= 0) {
    const int64_t bytes = vocab * int64_t(weight.element_size());
    chunk = x.is_cpu() ? std::max(x.size(1), (int64_t(64) << 20) / bytes) : 4096;
  }
  const int64_t chunks = (rows + chunk - 1) / chunk;
  return chunks > 1 ? (rows + chunks - 1) / chunks : rows;
}

void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
              "linear_cross_entropy: x [N, D] and weight [V, D] do not fit: ", x.sizes(), ", ",
              weight.sizes());
  TORCH_CHECK(
      targets.dim() == 1 && targets.size(0) == x.size(0) && targets.scalar_type() == at::kLong,
      "linear_cross_entropy: targets must be int64 [N]");
  if (!targets.is_cpu() || targets.numel() == 0) return;  // a device checks its own indices
  const int64_t largest = targets.max().item<int64_t>();
  if (largest >= weight.size(0))
    throw Error("target " + std::to_string(largest) + " is outside the vocabulary of " +
                    std::to_string(weight.size(0)) + "; set model.vocab to the tokenizer's size",
                ExitCode::data);
}

struct Result {
  at::Tensor loss, plain, dx, dw;
};

Result compute(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets, Job job,
               bool need_dx, bool need_dw, int64_t chunk) {
  const int64_t total = x.size(0);
  Result result;
  if (need_dx) result.dx = at::empty_like(x);
  const int64_t step = total > 0 ? chunk_rows(x, weight, chunk) : 1;
  at::Tensor logits = at::empty({std::min(step, total), weight.size(0)}, x.options());
  WeightGradient dw(weight, step < total);
  Sums sums;
  for (int64_t begin = 0; begin < total; begin += step) {
    const int64_t rows = std::min(step, total - begin);
    at::Tensor part = logits.narrow(0, 0, rows);
    const at::Tensor x_part = x.narrow(0, begin, rows);
    at::mm_out(part, x_part, weight.t());
    sums.add(part, targets.narrow(0, begin, rows), job);
    if (need_dx) {
      at::Tensor dx_part = result.dx.narrow(0, begin, rows);
      at::mm_out(dx_part, part, weight);
    }
    if (need_dw) dw.add(part, x_part);
  }
  logits.reset();  // before dw may be cast
  if (need_dw) result.dw = dw.take();
  std::tie(result.loss, result.plain) = sums.result(x.options().dtype(job.type));
  return result;
}

/// Leaves rows without a target out of the products; on the CPU only, a device would wait for their
/// number.
Result compute_valid(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                     const Job& job, bool need_dx, bool need_dw, int64_t chunk) {
  if (!x.is_cpu()) return compute(x, weight, targets, job, need_dx, need_dw, chunk);
  const at::Tensor kept = targets.ge(0).nonzero().squeeze(1);
  if (kept.size(0) == x.size(0)) return compute(x, weight, targets, job, need_dx, need_dw, chunk);
  Result result = compute(x.index_select(0, kept), weight, targets.index_select(0, kept), job,
                          need_dx, need_dw, chunk);
  if (need_dx) result.dx = at::zeros_like(x).index_copy_(0, kept, result.dx);
  return result;
}

}  // namespace

std::pair<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                       const at::Tensor& weight,
                                                       const at::Tensor& targets, double z_weight,
                                                       double scale, int64_t chunk) {
  check(x, weight, targets);
  if (reference_ops()) return reference(x, weight, targets, z_weight, scale);

  const bool need_dx = torch::autograd::compute_requires_grad(x);
  const bool need_dw = torch::autograd::compute_requires_grad(weight);
  const Job job{z_weight, scale, need_dx || need_dw, loss_type(x)};
  Result result;
  {
    const at::NoGradGuard no_grad;
    result =
        compute_valid(x.contiguous(), weight, targets.contiguous(), job, need_dx, need_dw, chunk);
  }
  if (job.gradient) {
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
