#include "generate/sampling.h"

#include <cmath>
#include <numeric>
#include <unordered_map>

namespace dsv3 {
namespace {

/// Penalises each id once, no matter how often it occurs.
void penalise(std::vector<double>& scores, std::span<const int32_t> before, double penalty) {
  std::vector<bool> done(scores.size());
  for (const int32_t id : before) {
    const size_t i = size_t(id);
    if (i >= scores.size() || done[i]) continue;
    done[i] = true;
    scores[i] = scores[i] > 0 ? scores[i] / penalty : scores[i] * penalty;
  }
}

void normalise(std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
}

/// Truncates `ids`, which are sorted by decreasing probability, after the id at which the
/// cumulative probability reaches top_p.
void cut_to_mass(Distribution& result, double top_p) {
  double mass = 0;
  size_t count = 0;
  while (count < result.ids.size() && (count == 0 || mass < top_p))
    mass += result.probabilities[count++];
  result.ids.resize(count);
  result.probabilities.resize(count);
  normalise(result.probabilities);
}

}  // namespace

double Distribution::of(int32_t id) const {
  const auto found = std::find(ids.begin(), ids.end(), id);
  return found == ids.end() ? 0 : probabilities[size_t(found - ids.begin())];
}

Distribution distribution(std::span<const float> logits, std::span<const int32_t> before,
                          const Sampling& sampling) {
  std::vector<double> scores(logits.begin(), logits.end());
  for (const double score : scores)
    if (!std::isfinite(score))
      throw Error(
          "the model's logits are not finite: its weights are damaged, or the precision is too "
          "low");
  if (sampling.repetition_penalty != 1) penalise(scores, before, sampling.repetition_penalty);
  const auto best = std::max_element(scores.begin(), scores.end());
  if (sampling.temperature <= 0) return {{int32_t(best - scores.begin())}, {1}};

  Distribution result;
  result.ids.resize(scores.size());
  std::iota(result.ids.begin(), result.ids.end(), 0);
  const auto more_likely = [&scores](int32_t a, int32_t b) {
    const double x = scores[size_t(a)], y = scores[size_t(b)];
    return x != y ? x > y : a < b;
  };
  if (sampling.top_k > 0 && size_t(sampling.top_k) < scores.size()) {
    std::nth_element(result.ids.begin(), result.ids.begin() + sampling.top_k - 1, result.ids.end(),
                     more_likely);
    result.ids.resize(size_t(sampling.top_k));
  }
  if (sampling.top_p < 1) std::sort(result.ids.begin(), result.ids.end(), more_likely);
  for (const int32_t id : result.ids)
    result.probabilities.push_back(std::exp((scores[size_t(id)] - *best) / sampling.temperature));
  normalise(result.probabilities);
  if (sampling.top_p < 1) cut_to_mass(result, sampling.top_p);
  return result;
}

int32_t draw(const Distribution& from, Random& random) {
  double left = random.uniform();
  size_t chosen = 0;
  while (chosen + 1 < from.ids.size() && left >= from.probabilities[chosen])
    left -= from.probabilities[chosen++];
  return from.ids[chosen];
}

std::pair<int32_t, bool> judge(int32_t draft, const Distribution& p, const Distribution& q,
                               Random& random) {
  // draft was drawn from q, so q.of(draft) > 0.
  if (random.uniform() * q.of(draft) < p.of(draft)) return {draft, true};
  Distribution rest = p;
  std::unordered_map<int32_t, double> drafted;
  for (size_t i = 0; i < q.ids.size(); ++i) drafted.emplace(q.ids[i], q.probabilities[i]);
  for (size_t i = 0; i < rest.ids.size(); ++i)
    if (const auto found = drafted.find(rest.ids[i]); found != drafted.end())
      rest.probabilities[i] = std::max(rest.probabilities[i] - found->second, 0.0);
  // A rejected draft has p < q, so p > q for a different id. The sum can be 0 only because of
  // rounding.
  if (std::accumulate(rest.probabilities.begin(), rest.probabilities.end(), 0.0) <= 0)
    return {draw(p, random), false};
  normalise(rest.probabilities);
  return {draw(rest, random), false};
}

}  // namespace dsv3
