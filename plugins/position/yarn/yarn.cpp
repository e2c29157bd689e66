// RoPE stretched to longer contexts.
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
    s.add("theta", &YarnOptions::theta, "base of the wavelengths").min(1.001);
    s.add("factor", &YarnOptions::factor, "how many times longer the context becomes").min(1);
    s.add("original_length", &YarnOptions::original_length, "context in tokens before stretching")
        .min(1);
    s.add("beta_fast", &YarnOptions::beta_fast,
          "pairs that turn more often than this over the original length are left alone")
        .min(1e-3);
    s.add("beta_slow", &YarnOptions::beta_slow,
          "pairs that turn less often than this are slowed down by the whole factor")
        .min(1e-3);
    s.add("mscale", &YarnOptions::mscale, "attention temperature in cosines and sines; 0 = paper's")
        .min(0);
    s.add("mscale_all_dim", &YarnOptions::mscale_all_dim,
          "attention temperature in the softmax scale; 0 = none there")
        .min(0);
    s.add("layout", &YarnOptions::layout,
          "which features form a pair: interleaved (0,1),(2,3).. as DeepSeek, half (0,R/2),.. as "
          "Llama")
        .choices({"interleaved", "half"})
        .convention();
    s.check([](const YarnOptions& o) -> std::string {
      return o.beta_fast < o.beta_slow ? "beta_fast must not be below beta_slow" : "";
    });
  }
};

// 0.1 m ln(s) + 1: how much longer contexts sharpen attention.
double temperature(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// Index of the pair that turns `turns` times over the original length.
double pair_turning(double turns, int64_t dim, const YarnOptions& o) {
  return dim * std::log(o.original_length / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(o.theta));
}

std::vector<double> stretched(int64_t dim, const YarnOptions& o) {
  std::vector<double> frequencies = dsv3::rotary_frequencies(dim, o.theta);
  const double low = std::max(std::floor(pair_turning(o.beta_fast, dim, o)), 0.0);
  double high = std::min(std::ceil(pair_turning(o.beta_slow, dim, o)), dim - 1.0);
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
      : angles_(stretched(context.rotary_dim, options), angle_scale(options), context.sequence),
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
  registrar.position<Yarn>("yarn", "RoPE stretched to longer contexts (YaRN)");
}
