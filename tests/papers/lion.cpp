// Lion (Chen et al., arXiv 2302.06675), algorithm 2.
#include <ATen/ATen.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.99, weight_decay = 0.1;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("lr", &Options::lr, "base learning rate, which the schedule scales").min(0);
    s.add("beta1", &Options::beta1, "weight of the momentum in the update direction").min(0).max(1);
    s.add("beta2", &Options::beta2, "decay rate of the momentum").min(0).max(1);
    s.add("weight_decay", &Options::weight_decay, "decoupled weight decay").min(0);
  }
};

/// c = beta1 m + (1 - beta1) g;  value = value - lr (sign(c) + weight_decay value);
/// m = beta2 m + (1 - beta2) g.
class Lion final : public dsv3::Optimizer {
 public:
  using Options = ::Options;
  explicit Lion(const Options& options) : o_(options) {}
  bool whole_matrices() const override { return false; }
  double lr() const override { return o_.lr; }
  std::vector<dsv3::StateSlot> slots() const override { return {{"momentum"}}; }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    const double lr = o_.lr * step.lr_factor;
    for (const dsv3::Slice& slice : slices) {
      const at::Tensor& momentum = slice.state[0];
      const at::Tensor direction = momentum.lerp(slice.grad, 1 - o_.beta1).sign_();
      slice.value.mul_(1 - lr * o_.weight_decay).sub_(direction, lr);
      momentum.lerp_(slice.grad, 1 - o_.beta2);
    }
  }

 private:
  Options o_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<Lion>("lion", "Lion: sign of an interpolated momentum");
}
