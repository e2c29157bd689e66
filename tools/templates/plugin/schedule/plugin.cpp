// schedule/@NAME@: linear warm-up, then 1 / sqrt(step), as in arXiv 1706.03762, equation 3.
#include <algorithm>
#include <cmath>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct Options {
  int64_t warmup = 100;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("warmup", &Options::warmup, "number of linear warm-up steps").min(0);
  }
};

class InverseSqrt final : public dsv3::Schedule {
 public:
  using Options = ::Options;
  explicit InverseSqrt(const Options& options) : o_(options) {}

  // The factor depends only on the step, so resuming needs no state.
  double factor(int64_t step, int64_t) const override {
    if (step < o_.warmup) return double(step) / double(o_.warmup);
    return std::sqrt(double(std::max<int64_t>(o_.warmup, 1)) / double(std::max<int64_t>(step, 1)));
  }

 private:
  Options o_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<InverseSqrt>("@NAME@", "@NAME@, based on the schedule template");
}
