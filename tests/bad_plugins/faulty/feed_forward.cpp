// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_feed_forward
#include "../../../tools/templates/plugin/feed_forward/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>
#include <stdexcept>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::FeedForward {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::LayerContext& context)
      : FeedForward(context), fault_(options), working_(::Options{}, context) {
    counts_ = at::zeros({4}, at::kLong);
  }

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    if (x.is_meta() && fault_.is("reads_meta_tensor")) return x * *x.const_data_ptr<float>();
    if (x.is_meta()) return working_.forward(x, seq);  // a measurement
    fault_.work();
    if (seq.training && (!seq.recompute || fault_.is("counts_twice"))) counts_ += x.size(0);
    return spoiled(fault_, x, working_.forward(x, seq));
  }
  at::Tensor step_counts() override {
    if (fault_.is("counts_in_float")) return counts_.to(at::kFloat);
    if (fault_.is("counts_in_two_dimensions")) return counts_.view({2, 2});
    return counts_;
  }
  void on_step_end(const dsv3::StepEnd&) override {
    if (fault_.is("step_end_throws")) throw std::runtime_error("broken on purpose");
  }

 private:
  Fault fault_;
  GatedMlp working_;
  at::Tensor counts_;
};

}  // namespace

void register_feed_forward(dsv3::Registrar& registrar) {
  registrar.feed_forward<Faulty>("faulty", "Feed-forward layer with a configurable fault");
  // Replaces the registrar's factory, which never returns nullptr, with one that can.
  using Factory = dsv3::Factory<dsv3::FeedForward>;
  auto& registration = const_cast<dsv3::Registration&>(registrar.registrations().back());
  registration.factory =
      Factory([working = std::any_cast<Factory>(registration.factory)](
                  const dsv3::OptionValues& values, const dsv3::LayerContext& context) {
        const auto fault = values.find("fault");
        const bool no_object =
            fault != values.end() && std::get<std::string>(fault->second) == "no_object";
        return no_object ? nullptr : working(values, context);
      });
}

}  // namespace faulty
