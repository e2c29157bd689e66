#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include <catch2/catch.hpp>

#include <dsv3/runtime/report.h>

namespace {

using dsv3::Series;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A noisy, falling curve with points at random distances.
Series noisy(size_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> noise(0, 0.1);
  Series series;
  double x = 0;
  for (size_t i = 0; i < count; ++i) {
    x += 1 + double(random() % 9);
    series.x.push_back(x);
    series.y.push_back(5 * std::exp(-double(i) / 2000) + noise(random));
  }
  return series;
}

// The recorded points as a set; NaN becomes a text that compares equal to itself.
std::set<std::pair<double, std::string>> points(const Series& series) {
  std::set<std::pair<double, std::string>> found;
  for (size_t i = 0; i < series.x.size(); ++i)
    found.emplace(series.x[i], std::isnan(series.y[i]) ? "NaN" : std::to_string(series.y[i]));
  return found;
}

}  // namespace

TEST_CASE("a short curve is not downsampled") {
  const Series series = noisy(100, 1);
  CHECK(dsv3::downsample(series, 100).x == series.x);
  CHECK(dsv3::downsample(series, 100).y == series.y);
  CHECK(dsv3::downsample({}, 8).x.empty());
}

TEST_CASE("a downsampled curve consists of recorded points in order, and is short") {
  for (const size_t limit : {8, 9, 57, 400, 4999}) {
    const Series series = noisy(5000, unsigned(limit)), shown = dsv3::downsample(series, limit);
    CAPTURE(limit, shown.x.size());
    CHECK(shown.x.size() <= limit);
    CHECK(shown.x.size() >= limit / 3);
    CHECK(std::ranges::is_sorted(shown.x, std::less_equal()));
    CHECK(std::ranges::includes(points(series), points(shown)));
    CHECK(shown.x.front() == series.x.front());
    CHECK(shown.x.back() == series.x.back());
    CHECK(shown.y.back() == series.y.back());
  }
}

TEST_CASE("downsampling keeps the extremes of every range") {
  Series series = noisy(5000, 3);
  series.y[1234] = 99;
  series.y[4321] = -99;
  const Series shown = dsv3::downsample(series, 100);
  CHECK(std::ranges::count(shown.y, 99) == 1);
  CHECK(std::ranges::count(shown.y, -99) == 1);
}

TEST_CASE("downsampling keeps gaps of values that are not finite") {
  Series series = noisy(5000, 4);
  series.y[10] = std::numeric_limits<double>::infinity();
  for (size_t i = 2000; i < 2600; ++i) series.y[i] = kNaN;
  const Series shown = dsv3::downsample(series, 60);
  CHECK(shown.x.size() <= 60);
  CHECK(std::ranges::count(shown.y, std::numeric_limits<double>::infinity()) == 1);
  size_t broken = 0;
  for (size_t i = 0; i < shown.x.size(); ++i)
    if (std::isnan(shown.y[i])) {
      ++broken;
      CHECK(shown.x[i] >= series.x[2000]);
      CHECK(shown.x[i] <= series.x[2599]);
    }
  CHECK(broken >= 2);
}

TEST_CASE("a curve without finite values, or with all points at almost one x, is downsampled") {
  Series broken{std::vector<double>(1000), std::vector<double>(1000, kNaN)};
  for (size_t i = 0; i < 1000; ++i) broken.x[i] = double(i);
  CHECK(dsv3::downsample(broken, 20).x.back() == 999);
  Series dense = broken;
  dense.y.assign(1000, 1.0);
  for (size_t i = 0; i < 999; ++i) dense.x[i] = 1 + 1e-9 * double(i);
  dense.x[999] = 1e9;
  const Series shown = dsv3::downsample(dense, 20);
  CHECK(shown.x.back() == 1e9);
  CHECK(shown.x.size() <= 20);
}
