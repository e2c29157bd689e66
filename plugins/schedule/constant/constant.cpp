// Linear warm-up, then the full learning rate.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct ConstantOptions {
  int64_t warmup = 0;
  static void describe(dsv3::OptionSchema<ConstantOptions>& s) {
    s.add("warmup", &ConstantOptions::warmup, "number of linear warm-up steps")
        .min(0)
        .max(1 << 30)
        .shared("warm-up steps");
  }
};

class Constant final : public dsv3::Schedule {
 public:
  using Options = ConstantOptions;
  explicit Constant(const ConstantOptions& options) : options_(options) {}

  double factor(int64_t step, int64_t) const override {
    return step < options_.warmup ? double(step) / double(options_.warmup) : 1.0;
  }
  std::string problem(int64_t total) const override {
    return dsv3::warmup_problem(options_.warmup, total);
  }

 private:
  ConstantOptions options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Constant>("constant", "Constant after a linear warm-up");
}
