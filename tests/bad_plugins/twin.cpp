// A schedule that throws a different exception at each step, to test exceptions that cross a
// library boundary.
#include <dsv3/sdk/config_reader.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>
#include <dsv3/sdk/tracker.h>

namespace {

// An exception type that only this library defines. The host defines only its base class.
class TwinError : public dsv3::Error {
 public:
  using dsv3::Error::Error;
};

class Twin final : public dsv3::Schedule {
 public:
  using Options = dsv3::NoOptions;
  explicit Twin(const Options&) {}
  double factor(int64_t step, int64_t total) const override {
    if (step == 1) throw TwinError("twin", dsv3::ExitCode::data);
    if (step == 2) throw dsv3::RetryAfter("later", 2.5);
    // Checks that a plugin can catch an exception from libdsv3 as its base class, dsv3::Error.
    if (step == 3) try {
        const nlohmann::json empty;
        dsv3::ConfigReader reader(empty);
        reader.mistake("nonsense");
        reader.finish();
      } catch (const dsv3::Error& e) {
        return static_cast<double>(e.code());
      }
    return static_cast<double>(total);
  }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Twin>("twin", "Throws an exception that depends on the step");
}
