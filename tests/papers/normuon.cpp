// NorMuon (Li et al., arXiv 2510.05491), algorithm 1.
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  double lr = 0.02, beta1 = 0.95, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("lr", &Options::lr, "base learning rate, which the schedule scales").min(0);
    s.add("beta1", &Options::beta1, "decay rate of the momentum").min(0).max(1);
    s.add("beta2", &Options::beta2, "decay rate of the rows' second moments").min(0).max(1);
    s.add("eps", &Options::eps, "constant added to the root of the second moments").min(0);
    s.add("weight_decay", &Options::weight_decay, "decoupled weight decay").min(0);
  }
};

/// Keller Jordan's Newton-Schulz iteration, in fp32.
at::Tensor orthogonalise(const at::Tensor& matrix) {
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = tall ? matrix.t() : matrix;
  x = x / x.norm().clamp_min(1e-7);
  for (int i = 0; i < 5; ++i) {
    const at::Tensor a = x.mm(x.t());
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a.mm(a)).mm(x);
  }
  return tall ? x.t() : x;
}

/// m = beta1 m + (1 - beta1) g;  o = orthogonalise(m);  v = beta2 v + (1 - beta2) row means of o^2;
/// o = o / (sqrt(v) + eps);
/// value = value - lr weight_decay value - 0.2 lr sqrt(rows columns) / |o| o.
class NorMuon final : public dsv3::Optimizer {
 public:
  using Options = ::Options;
  explicit NorMuon(const Options& options) : o_(options) {}
  bool whole_matrices() const override { return true; }
  double lr() const override { return o_.lr; }
  std::vector<dsv3::StateSlot> slots() const override {
    return {{"momentum"}, {"row_moments", dsv3::StateSlot::Like::rows}};
  }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    const double lr = o_.lr * step.lr_factor;
    for (const dsv3::Slice& slice : slices) {
      const at::Tensor &momentum = slice.state[0], &moments = slice.state[1];
      momentum.lerp_(slice.grad, 1 - o_.beta1);
      at::Tensor update = orthogonalise(momentum);
      moments.lerp_(update.square().mean(1), 1 - o_.beta2);
      update = update / (moments.sqrt() + o_.eps).unsqueeze(1);
      // The clamp keeps a zero gradient finite.
      update.mul_(0.2 * std::sqrt(double(update.numel())) / update.norm().clamp_min(1e-30));
      slice.value.mul_(1 - lr * o_.weight_decay).sub_(update, lr);
    }
  }

 private:
  Options o_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<NorMuon>("normuon", "Muon with a second moment for each neuron (NorMuon)");
}
