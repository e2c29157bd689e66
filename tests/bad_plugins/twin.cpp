// A sound schedule that throws what its step tells it to: exceptions across the library's border.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>
#include <dsv3/sdk/tracker.h>

namespace {

// Lives in this library only; the host sees its base.
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
    // An exception of libdsv3, caught here by its base: the other way across the border.
    if (step == 3) try {
        dsv3::kind_from_name("nonsense");
      } catch (const dsv3::Error& e) {
        return static_cast<double>(e.code());
      }
    return static_cast<double>(total);
  }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Twin>("twin", "Throws what it is told to");
}
