#include <algorithm>
#include <cmath>

#include <dsv3/runtime/report.h>

namespace dsv3 {
namespace {

/// Appends the points of `series` in [begin, end) that keep its shape, in their order.
void keep_extremes(const Series& series, size_t begin, size_t end, std::vector<size_t>& kept) {
  constexpr size_t kNone = SIZE_MAX;
  size_t low = kNone, high = kNone, broken = kNone;
  for (size_t i = begin; i < end; ++i) {
    const double y = series.y[i];
    if (!std::isfinite(y)) {
      if (broken == kNone) broken = i;
      continue;
    }
    if (low == kNone || y < series.y[low]) low = i;
    if (high == kNone || y > series.y[high]) high = i;
  }
  std::vector<size_t> found;
  for (const size_t index : {low, high, broken})
    if (index != kNone && !std::ranges::count(found, index)) found.push_back(index);
  std::ranges::sort(found);
  kept.insert(kept.end(), found.begin(), found.end());
}

}  // namespace

Series downsample(const Series& series, size_t limit) {
  const size_t count = series.x.size();
  if (count <= limit) return series;
  const bool finite = std::ranges::all_of(series.y, [](double y) { return std::isfinite(y); });
  const size_t ranges = std::max<size_t>(1, (limit - 2) / (finite ? 2 : 3));
  const double first = series.x.front(), width = (series.x.back() - first) / double(ranges);
  std::vector<size_t> kept{0};
  size_t begin = 1;
  for (size_t range = 0; range < ranges && begin < count - 1; ++range) {
    const double until = first + width * double(range + 1);
    size_t end = begin;
    while (end < count - 1 && (series.x[end] <= until || range == ranges - 1)) ++end;
    keep_extremes(series, begin, end, kept);
    begin = end;
  }
  kept.push_back(count - 1);
  Series result;
  for (const size_t index : kept) {
    result.x.push_back(series.x[index]);
    result.y.push_back(series.y[index]);
  }
  return result;
}

}  // namespace dsv3
