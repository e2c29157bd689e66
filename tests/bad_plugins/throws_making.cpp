// A schedule whose constructor throws the exception selected by the option `what`.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {

struct ThrowerOptions {
  std::string what = "error";
  static void describe(dsv3::OptionSchema<ThrowerOptions>& s) {
    s.add("what", &ThrowerOptions::what, "error | standard | number");
  }
};

class Thrower final : public dsv3::Schedule {
 public:
  using Options = ThrowerOptions;
  explicit Thrower(const Options& options) {
    if (options.what == "error") throw dsv3::Error("text.txt is empty", dsv3::ExitCode::data);
    if (options.what == "standard") throw std::out_of_range("index 7");
    throw 42;
  }
  double factor(int64_t, int64_t) const override { return 1; }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Thrower>("thrower", "Throws an exception in its constructor");
}
