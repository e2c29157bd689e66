// position/@NAME@: rotary position embedding (Su et al., arXiv 2104.09864), with features paired as
// in Llama.
#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct Options {
  double theta = 10000;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("theta", &Options::theta, "base (theta) of the position frequencies theta^(-2i/d)")
        .min(1);
  }
};

class Rotary final : public dsv3::Position {
 public:
  using Options = ::Options;
  Rotary(const Options& options, const dsv3::PositionContext& context)
      : angles_(dsv3::rotary_frequencies(context.rotary_dim, options.theta), 1.0,
                context.sequence) {}

  // Uses `positions`, which restart in each document, instead of the token's index in the row.
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    const auto [cos, sin] = angles_.at(positions, q.scalar_type());
    return {dsv3::rotate(q, cos, sin, /*interleaved=*/false),
            dsv3::rotate(k, cos, sin, /*interleaved=*/false)};
  }

 private:
  dsv3::Angles angles_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.position<Rotary>("@NAME@", "@NAME@, based on the position template");
}
