// optimizer/host_sgd: gradient descent in a loop on the host, whatever device the parameters are
// on.
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

namespace {

class HostSgd final : public dsv3::Optimizer {
 public:
  using Options = dsv3::NoOptions;
  explicit HostSgd(const Options&) {}

  bool whole_matrices() const override { return false; }
  double lr() const override { return 0.01; }
  std::vector<dsv3::StateSlot> slots() const override { return {}; }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    for (const dsv3::Slice& slice : slices) {
      float* value = slice.value.mutable_data_ptr<float>();
      const float* grad = slice.grad.const_data_ptr<float>();
      for (int64_t i = 0; i < slice.value.numel(); ++i)
        value[i] -= float(lr() * step.lr_factor) * grad[i];
    }
  }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<HostSgd>("host_sgd", "Test optimizer that updates parameters on the host");
}
