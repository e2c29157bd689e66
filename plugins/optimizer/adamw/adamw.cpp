// AdamW as defined by torch.optim.AdamW.
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

#include "kernel.h"

namespace {

struct AdamWOptions {
  double lr = 3e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  static void describe(dsv3::OptionSchema<AdamWOptions>& s) {
    s.add("lr", &AdamWOptions::lr, "base learning rate, which the schedule scales").min(0);
    s.add("beta1", &AdamWOptions::beta1, "decay rate of the first moment").min(0).max(1);
    s.add("beta2", &AdamWOptions::beta2, "decay rate of the second moment").min(0).max(1);
    s.add("eps", &AdamWOptions::eps, "constant added to the square root of the second moment")
        .min(0);
    s.add("weight_decay", &AdamWOptions::weight_decay,
          "decoupled weight decay: weights shrink by lr * weight_decay per update")
        .min(0);
    s.check([](const AdamWOptions& o) {
      return o.beta1 < 1 && o.beta2 < 1 ? "" : "beta1 and beta2 must be below 1";
    });
  }
};

/// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
/// value = (1 - lr wd) value - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).
class AdamW final : public dsv3::Optimizer {
 public:
  using Options = AdamWOptions;
  explicit AdamW(const AdamWOptions& options) : options_(options) {}

  bool whole_matrices() const override { return false; }
  double lr() const override { return options_.lr; }
  std::vector<dsv3::StateSlot> slots() const override {
    return {{"exp_avg", dsv3::StateSlot::Like::value, at::kFloat},
            {"exp_avg_sq", dsv3::StateSlot::Like::value, at::kFloat}};
  }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    std::vector<at::Tensor> values, grads, first, second;
    for (const dsv3::Slice& slice : slices) {
      if (slice.value.is_cpu()) {
        step_on_cpu(slice, step);
        continue;
      }
      values.push_back(slice.value);
      grads.push_back(slice.grad);
      first.push_back(slice.state[0]);
      second.push_back(slice.state[1]);
    }
    if (values.empty()) return;
    const at::Tensor number = at::full({}, double(step.update), first.front().options());
    const std::vector<at::Tensor> numbers(values.size(), number);
    at::_fused_adamw_(values, grads, first, second, {}, numbers, options_.lr * step.lr_factor,
                      options_.beta1, options_.beta2, options_.weight_decay, options_.eps,
                      /*amsgrad=*/false, /*maximize=*/false);
  }

 private:
  void step_on_cpu(const dsv3::Slice& slice, const dsv3::OptimStep& step) const {
    const double lr = options_.lr * step.lr_factor, t = double(step.update);
    const dsv3::adamw::Coefficients coefficients{
        .decay = float(1 - lr * options_.weight_decay),
        .beta1 = float(options_.beta1),
        .beta2 = float(options_.beta2),
        .step_size = float(lr / (1 - std::pow(options_.beta1, t))),
        .root = float(1 / std::sqrt(1 - std::pow(options_.beta2, t))),
        .eps = float(options_.eps)};
    float* value = slice.value.mutable_data_ptr<float>();
    const float* grad = slice.grad.const_data_ptr<float>();
    float* exp_avg = slice.state[0].mutable_data_ptr<float>();
    float* exp_avg_sq = slice.state[1].mutable_data_ptr<float>();
    at::parallel_for(0, slice.value.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
      dsv3::adamw::update(value + begin, grad + begin, exp_avg + begin, exp_avg_sq + begin,
                          end - begin, coefficients);
    });
  }

  AdamWOptions options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<AdamW>("adamw", "Adam with decoupled weight decay (AdamW)");
}
