// A valid schedule plugin. Its learning-rate factor halves every `steps` steps.
#include <cmath>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct HalvingOptions {
  int64_t steps = 10;
  double floor = 0;
  std::string mode = "smooth";
  static void describe(dsv3::OptionSchema<HalvingOptions>& s) {
    s.add("steps", &HalvingOptions::steps, "half-life of the learning-rate factor, in steps")
        .min(1);
    s.add("floor", &HalvingOptions::floor, "minimum factor").min(0).max(1);
    s.add("mode", &HalvingOptions::mode, "smooth | stairs").choices({"smooth", "stairs"});
  }
};

class Halving final : public dsv3::Schedule {
 public:
  using Options = HalvingOptions;
  explicit Halving(const Options& options) : options_(options) {}
  double factor(int64_t step, int64_t) const override {
    double halvings = static_cast<double>(step) / static_cast<double>(options_.steps);
    if (options_.mode == "stairs") halvings = std::floor(halvings);
    return std::max(options_.floor, std::exp2(-halvings));
  }

 private:
  Options options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Halving>("halving", "Halves the learning rate every `steps` steps");
}
