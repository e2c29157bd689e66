// The full learning rate at every step. Each call starts a section of the fake device's statistics,
// from the middle of a step to the middle of the next.
#include <dlfcn.h>
#include <string>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

/// A function of the fake device.
template <class Function>
Function* device_function(const char* name) {
  auto* function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
  if (!function) throw dsv3::Error("schedule/marked needs the fake CUDA device of the tests");
  return function;
}

struct MarkedOptions {
  int64_t steps = 1;
  static void describe(dsv3::OptionSchema<MarkedOptions>& s) {
    s.add("steps", &MarkedOptions::steps,
          "the step at which the process ends, without a checkpoint")
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
  registrar.schedule<Marked>("marked", "Marks steps for the fake CUDA device");
}
