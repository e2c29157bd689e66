// Synthetic data that a model can learn: rows of an order-2 Markov chain, without files or a
// tokenizer.
#pragma once

#include <dsv3/sdk/data.h>
#include <dsv3/sdk/options.h>

namespace dsv3::plugins {

struct SyntheticOptions {
  int64_t symbols = 64;
  double noise = 0.1;
  int64_t validation_rows = 64;

  static void describe(OptionSchema<SyntheticOptions>& s) {
    s.add("symbols", &SyntheticOptions::symbols,
          "number of distinct token ids, spread over the vocabulary")
        .min(2)
        .max(1 << 24);
    s.add("noise", &SyntheticOptions::noise, "fraction of tokens that are drawn at random")
        .min(0)
        .max(1);
    s.add("validation_rows", &SyntheticOptions::validation_rows, "number of validation rows")
        .min(1)
        .max(1 << 20);
  }
};

/// Row n is a function of (seed, split, n). With probability 1 - noise, a token is one of two that
/// depend on the two tokens before it (with odds 3 : 1); otherwise it is random. Training and
/// validation follow the same rules.
class SyntheticData final : public Data {
 public:
  using Options = SyntheticOptions;
  SyntheticData(const Options& options, const DataContext& context);
  Batch next() override;
  nlohmann::json state() const override;
  void load_state(const nlohmann::json& state) override;

 private:
  void fill(int64_t row, int64_t* tokens) const;
  uint64_t draw(uint64_t random, uint64_t before, uint64_t last) const;

  SyntheticOptions options_;
  DataContext context_;
  int64_t spread_;    // id = symbol * spread_
  int64_t rows_ = 0;  // number of rows returned by all ranks
};

}  // namespace dsv3::plugins
