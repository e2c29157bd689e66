#include "generate/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

/// One id from fp32 `logits` [V]. Probabilities are summed in order, so a seed gives the same id
/// anywhere.
int32_t pick(const at::Tensor& logits, const SampleOptions& options, std::mt19937_64& random) {
  if (options.temperature <= 0) return static_cast<int32_t>(logits.argmax().item<int64_t>());
  const int64_t count =
      options.top_k > 0 ? std::min(options.top_k, logits.size(0)) : logits.size(0);
  auto [values, ids] = logits.topk(count);
  const at::Tensor weights =
      ((values - values[0]) / options.temperature).exp().to(at::kDouble).contiguous();
  const std::span<const double> weight(weights.const_data_ptr<double>(),
                                       static_cast<size_t>(count));
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double left = total * (static_cast<double>(random() >> 11) * 0x1p-53);
  size_t chosen = 0;
  while (chosen + 1 < weight.size() && left >= weight[chosen]) left -= weight[chosen++];
  return static_cast<int32_t>(ids[static_cast<int64_t>(chosen)].item<int64_t>());
}

}  // namespace

std::vector<int32_t> sample(Model& model, const std::vector<int32_t>& prompt,
                            const SampleOptions& options) {
  if (prompt.empty())
    throw Error("cannot continue an empty prompt: give at least one token", ExitCode::usage);
  std::mt19937_64 random(options.seed);
  std::vector<KvCache> caches = model.make_caches(1);
  std::vector<int64_t> fed(prompt.begin(), prompt.end());
  std::vector<int32_t> produced;
  while (static_cast<int64_t>(produced.size()) < options.tokens) {
    const at::Tensor tokens = at::tensor(fed, at::kLong).unsqueeze(0);
    const at::Tensor logits = model.next_logits(tokens, caches)[0].cpu();
    const int32_t id = pick(logits, options, random);
    if (id == options.stop_id) break;
    produced.push_back(id);
    fed.assign(1, id);
  }
  return produced;
}

}  // namespace dsv3
