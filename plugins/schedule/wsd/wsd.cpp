// Linear warm-up, a plateau, then decay over the final part of the run.
#include <algorithm>
#include <cmath>
#include <numbers>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct WsdOptions {
  int64_t warmup = 0;
  double decay = 0.2, min_ratio = 0.0;
  std::string shape = "linear";
  static void describe(dsv3::OptionSchema<WsdOptions>& s) {
    s.add("warmup", &WsdOptions::warmup, "number of linear warm-up steps")
        .min(0)
        .max(1 << 30)
        .shared("warm-up steps");
    s.add("decay", &WsdOptions::decay,
          "fraction of the run, at its end, in which the learning rate decays")
        .min(0)
        .max(1);
    s.add("min_ratio", &WsdOptions::min_ratio,
          "factor applied to the learning rate in the last step")
        .min(0)
        .max(1)
        .shared("final factor");
    s.add("shape", &WsdOptions::shape, "decay shape: linear, cosine, or sqrt = 1 - sqrt(progress)")
        .choices({"linear", "cosine", "sqrt"});
  }
};

class Wsd final : public dsv3::Schedule {
 public:
  using Options = WsdOptions;
  explicit Wsd(const WsdOptions& options) : options_(options) {}

  double factor(int64_t step, int64_t total) const override {
    if (step < options_.warmup) return double(step) / double(options_.warmup);
    // If the warm-up overlaps the decay, the decay is shortened, so that the learning rate never
    // jumps.
    const double start = std::max(double(options_.warmup), double(total) * (1 - options_.decay));
    if (double(step) <= start || start >= double(total)) return 1;
    const double progress = std::min((double(step) - start) / (double(total) - start), 1.0);
    return options_.min_ratio + (1 - options_.min_ratio) * (1 - decayed(progress));
  }
  std::string problem(int64_t total) const override {
    return dsv3::warmup_problem(options_.warmup, total);
  }

 private:
  double decayed(double progress) const {
    if (options_.shape == "cosine") return 0.5 * (1 - std::cos(std::numbers::pi * progress));
    return options_.shape == "sqrt" ? std::sqrt(progress) : progress;
  }

  WsdOptions options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Wsd>("wsd", "Warm-up, stable, decay (WSD)");
}
