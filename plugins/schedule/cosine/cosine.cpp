// Linear warm-up, then half a cosine wave down to min_ratio.
#include <algorithm>
#include <cmath>
#include <numbers>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct CosineOptions {
  int64_t warmup = 0;
  double min_ratio = 0.1;
  static void describe(dsv3::OptionSchema<CosineOptions>& s) {
    s.add("warmup", &CosineOptions::warmup, "number of linear warm-up steps")
        .min(0)
        .max(1 << 30)
        .shared("warm-up steps");
    s.add("min_ratio", &CosineOptions::min_ratio,
          "factor applied to the learning rate in the last step")
        .min(0)
        .max(1)
        .shared("final factor");
  }
};

class Cosine final : public dsv3::Schedule {
 public:
  using Options = CosineOptions;
  explicit Cosine(const CosineOptions& options) : options_(options) {}

  double factor(int64_t step, int64_t total) const override {
    if (step < options_.warmup) return double(step) / double(options_.warmup);
    const double length = double(std::max<int64_t>(total - options_.warmup, 1));
    const double progress = std::min(double(step - options_.warmup) / length, 1.0);
    const double wave = 0.5 * (1 + std::cos(std::numbers::pi * progress));
    return options_.min_ratio + (1 - options_.min_ratio) * wave;
  }
  std::string problem(int64_t total) const override {
    return dsv3::warmup_problem(options_.warmup, total);
  }

 private:
  CosineOptions options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Cosine>("cosine", "Linear warm-up, then half a cosine wave");
}
