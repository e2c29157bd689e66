// Rotary position embedding.
#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct RopeOptions {
  double theta = 10000;
  std::string layout = "interleaved";
  static void describe(dsv3::OptionSchema<RopeOptions>& s) {
    s.add("theta", &RopeOptions::theta, "base (theta) of the position frequencies theta^(-2i/d)")
        .min(1)
        .shared("base of the frequencies");
    s.add("layout", &RopeOptions::layout,
          "which features are rotated as pairs: interleaved = (0,1),(2,3).. as in DeepSeek, half = "
          "(0,R/2).. "
          "as in Llama")
        .choices({"interleaved", "half"})
        .convention()
        .shared("rotated pairs");
  }
};

class Rope final : public dsv3::Position {
 public:
  using Options = RopeOptions;
  Rope(const RopeOptions& options, const dsv3::PositionContext& context)
      : angles_(dsv3::rotary_frequencies(context.rotary_dim, options.theta), 1.0, context.sequence),
        interleaved_(options.layout == "interleaved") {}

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    const auto [cos, sin] = angles_.at(positions, q.scalar_type());
    return {dsv3::rotate(q, cos, sin, interleaved_), dsv3::rotate(k, cos, sin, interleaved_)};
  }

 private:
  dsv3::Angles angles_;
  bool interleaved_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.position<Rope>("rope", "Rotary position embedding (RoPE)");
}
