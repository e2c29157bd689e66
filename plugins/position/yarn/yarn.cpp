// YaRN (Peng et al., arXiv 2309.00071): RoPE extended to longer contexts.
#include <algorithm>
#include <cmath>
#include <numbers>

#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct YarnOptions {
  double theta = 10000;
  double factor = 40;
  int64_t original_length = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 1;
  std::string layout = "interleaved";

  static void describe(dsv3::OptionSchema<YarnOptions>& s) {
    s.add("theta", &YarnOptions::theta, "base (theta) of the position frequencies theta^(-2i/d)")
        .min(1.001)
        .shared("base of the frequencies");
    s.add("factor", &YarnOptions::factor, "factor by which the context length is extended").min(1);
    s.add("original_length", &YarnOptions::original_length,
          "context length before the extension, in tokens")
        .min(1)
        .max(1 << 30);
    s.add("beta_fast", &YarnOptions::beta_fast,
          "feature pairs that complete more rotations than this within the original context keep "
          "their frequency")
        .min(1e-3);
    s.add("beta_slow", &YarnOptions::beta_slow,
          "feature pairs that complete fewer rotations than this within the original context have "
          "their frequency divided by the full `factor`")
        .min(1e-3);
    s.add("mscale", &YarnOptions::mscale,
          "coefficient in the scale of cosines and sines, (0.1 mscale ln(factor) + 1) / (0.1 "
          "mscale_all_dim ln(factor) + 1); if either is 0, the scale is 0.1 ln(factor) + 1, as in "
          "the paper")
        .min(0);
    s.add("mscale_all_dim", &YarnOptions::mscale_all_dim,
          "coefficient in the factor (0.1 mscale_all_dim ln(factor) + 1)^2 by which the softmax "
          "scale is multiplied; 0 = a factor of 1")
        .min(0);
    s.add("layout", &YarnOptions::layout,
          "which features are rotated as pairs: interleaved = (0,1),(2,3).. as in DeepSeek, half = "
          "(0,R/2).. "
          "as in Llama")
        .choices({"interleaved", "half"})
        .convention()
        .shared("rotated pairs");
    s.check([](const YarnOptions& o) -> std::string {
      return o.beta_fast < o.beta_slow ? "beta_fast must be at least beta_slow" : "";
    });
  }
};

// Attention temperature 0.1 m ln(s) + 1, which sharpens attention for longer contexts.
double temperature(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// Index of the feature pair that makes `turns` rotations over the original context length.
double pair_with_turns(double turns, int64_t dim, const YarnOptions& o) {
  return dim * std::log(o.original_length / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(o.theta));
}

std::vector<double> yarn_frequencies(int64_t dim, const YarnOptions& o) {
  std::vector<double> frequencies = dsv3::rotary_frequencies(dim, o.theta);
  const double low = std::max(std::floor(pair_with_turns(o.beta_fast, dim, o)), 0.0);
  double high = std::min(std::ceil(pair_with_turns(o.beta_slow, dim, o)), dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double slowed = std::clamp((i - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] * (1 - slowed) + frequencies[i] / o.factor * slowed;
  }
  return frequencies;
}

double angle_scale(const YarnOptions& o) {
  if (o.mscale == 0 || o.mscale_all_dim == 0) return temperature(o.factor, 1);
  return temperature(o.factor, o.mscale) / temperature(o.factor, o.mscale_all_dim);
}

class Yarn final : public dsv3::Position {
 public:
  using Options = YarnOptions;
  Yarn(const YarnOptions& options, const dsv3::PositionContext& context)
      : angles_(yarn_frequencies(context.rotary_dim, options), angle_scale(options),
                context.sequence),
        interleaved_(options.layout == "interleaved"),
        softmax_scale_(std::pow(
            options.mscale_all_dim == 0 ? 1.0 : temperature(options.factor, options.mscale_all_dim),
            2)) {}

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    const auto [cos, sin] = angles_.at(positions, q.scalar_type());
    return {dsv3::rotate(q, cos, sin, interleaved_), dsv3::rotate(k, cos, sin, interleaved_)};
  }
  double softmax_scale() const override { return softmax_scale_; }

 private:
  dsv3::Angles angles_;
  bool interleaved_;
  double softmax_scale_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.position<Yarn>("yarn", "RoPE extended to longer contexts (YaRN)");
}
