// The only `critic` plugin.
#include <stdexcept>

#include <dsv3/sdk/plugin.h>

#include "critic.h"

namespace {

struct StrictOptions {
  double tolerance = 0.5;
  static void describe(dsv3::OptionSchema<StrictOptions>& s) {
    s.add("tolerance", &StrictOptions::tolerance, "accepted excess over the target loss").min(0);
  }
};

class Strict final : public dsv3::Critic {
 public:
  using Options = StrictOptions;
  Strict(const StrictOptions& options, const dsv3::CriticContext& context)
      : limit_(context.target + options.tolerance) {}
  std::string opinion(double loss) const override {
    if (loss < 0) throw std::invalid_argument("negative loss");
    return loss <= limit_ ? "good" : "bad";
  }

 private:
  double limit_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.critic<Strict>("strict", "Accepts losses up to the target plus a tolerance");
}
