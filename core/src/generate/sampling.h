// Samples the next token from logits.
#pragma once

#include <random>
#include <span>

#include <dsv3/runtime/generate.h>

namespace dsv3 {

/// Random numbers that depend only on the seed and are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  /// In [0, 1).
  double uniform() { return double(engine_() >> 11) * 0x1p-53; }

 private:
  std::mt19937_64 engine_;
};

/// The possible next tokens. All other tokens have probability 0.
struct Distribution {
  std::vector<int32_t> ids;
  std::vector<double> probabilities;  ///< probabilities of `ids`; their sum is 1
  double of(int32_t id) const;
};

/// The distribution of the next token after `before`, given its `logits`, one per token id. Throws
/// dsv3::Error if they are not finite.
Distribution distribution(std::span<const float> logits, std::span<const int32_t> before,
                          const Sampling& sampling);

int32_t draw(const Distribution& from, Random& random);

/// Verifies `draft`, which was drawn from q. Accepts it with probability min(1, p / q), otherwise
/// draws a token from max(p - q, 0), so that the result is distributed as p (Leviathan et al.,
/// arXiv 2211.17192, appendix A.1). Returns {token, whether the draft was accepted}.
std::pair<int32_t, bool> judge(int32_t draft, const Distribution& p, const Distribution& q,
                               Random& random);

}  // namespace dsv3
