// Schedule-free AdamW (Defazio et al., arXiv 2405.15682), algorithm 1.
#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  double lr = 2.5e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("lr", &Options::lr, "base learning rate, which the schedule scales").min(0);
    s.add("beta1", &Options::beta1, "weight of the average x in y").min(1e-3).max(1);
    s.add("beta2", &Options::beta2, "decay rate of the second moment").min(0).max(1);
    s.add("eps", &Options::eps, "constant added to the root of the second moment").min(0);
    s.add("weight_decay", &Options::weight_decay, "decoupled weight decay").min(0);
  }
};

/// The weights that are trained are y = (1 - beta1) z + beta1 x. An update d = g / (sqrt(v^) + eps)
/// + weight_decay y changes z to z - lr d, and x to (1 - c) x + c z, where c is lr^2 divided by its
/// sum over all updates. The evaluation weights are x.
class ScheduleFree final : public dsv3::Optimizer {
 public:
  using Options = ::Options;
  explicit ScheduleFree(const Options& options) : o_(options) {}
  bool whole_matrices() const override { return false; }
  double lr() const override { return o_.lr; }
  std::vector<dsv3::StateSlot> slots() const override {
    return {{"z"}, {"exp_avg_sq"}, {"lr_squares", dsv3::StateSlot::Like::scalar, at::kDouble}};
  }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    const double lr = o_.lr * step.lr_factor;
    const double correction = 1 - std::pow(o_.beta2, double(step.update));
    for (const dsv3::Slice& slice : slices) {
      const at::Tensor &y = slice.value, &g = slice.grad, &z = slice.state[0], &v = slice.state[1];
      if (step.update == 1) z.copy_(y);
      v.mul_(o_.beta2).addcmul_(g, g, 1 - o_.beta2);
      const at::Tensor d = (g / ((v / correction).sqrt() + o_.eps)).add_(y, o_.weight_decay);
      const at::Tensor sum = slice.state[2].add_(lr * lr).clamp_min(1e-30);
      const at::Tensor c = (lr * lr / sum).to(at::kFloat);
      y.lerp_(z, c).sub_(d * (lr * (1 - o_.beta1 * (1 - c))));
      z.sub_(d, lr);
    }
  }

  bool has_evaluation_weights() const override { return true; }
  at::Tensor evaluation_weights(const dsv3::Slice& slice) const override {
    return slice.value.lerp(slice.state[0], 1 - 1 / o_.beta1);
  }

 private:
  Options o_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<ScheduleFree>("schedule_free", "Schedule-free AdamW");
}
