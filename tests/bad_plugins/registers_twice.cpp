// A plugin that registers the same component name twice.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/schedule.h>

namespace {
class Flat final : public dsv3::Schedule {
 public:
  using Options = dsv3::NoOptions;
  explicit Flat(const Options&) {}
  double factor(int64_t, int64_t) const override { return 1; }
};
}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.schedule<Flat>("halving", "once");
  registrar.schedule<Flat>("halving", "and again");
}
