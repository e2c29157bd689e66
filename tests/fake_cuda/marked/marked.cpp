// schedule/marked: a constant learning-rate factor of 1. Each call starts a new section in the fake
// device's statistics, so a section lasts from the middle of one step to the middle of the next.
#include <dlfcn.h>
#include <string>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

/// Returns a function that the fake device's library exports.
template <class Function>
Function* device_function(const char* name) {
  auto* function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  if (!function)
    throw dsv3::Error("schedule/marked requires the fake CUDA device that the tests use");
  return function;
}

struct MarkedOptions {
  int64_t steps = 1;
  static void describe(dsv3::OptionSchema<MarkedOptions>& s) {
    s.add("steps", &MarkedOptions::steps,
          "step in which the process ends, without saving a checkpoint")
        .min(1);
  }
};

class Marked final : public dsv3::Schedule {
 public:
  using Options = MarkedOptions;
  explicit Marked(const MarkedOptions& options) : options_(options) {}

  double factor(int64_t step, int64_t) const override {
    if (step == options_.steps) device_function<void()>("fake_cuda_finish")();
    device_function<void(const char*)>("fake_cuda_mark")(("step " + std::to_string(step)).c_str());
    return 1;
  }

 private:
  MarkedOptions options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Marked>("marked", "Marks steps in the fake CUDA device's statistics");
}
