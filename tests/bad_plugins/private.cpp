// A valid schedule plugin that needs a library of its own.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

extern "C" double dsv3_private_number();

namespace {

class Private final : public dsv3::Schedule {
 public:
  using Options = dsv3::NoOptions;
  explicit Private(const Options&) {}
  double factor(int64_t, int64_t) const override { return dsv3_private_number(); }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Private>("private", "A constant from another library");
}
