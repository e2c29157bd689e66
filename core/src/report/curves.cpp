#include <algorithm>
#include <charconv>
#include <cmath>

#include "report/data.h"

namespace dsv3::report {
namespace {

constexpr size_t kLargest = 2000;  // more points than a chart has pixels show nothing more
constexpr size_t kSmallest = 8;

/// The share of the points that a curve gets. Most people look at the loss.
size_t weight_of(const std::string& name) {
  if (name == "train/loss") return 8;
  if (name == "val/loss" || name == "train/grad_norm") return 4;
  return name.starts_with("train/") || name.starts_with("throughput/") ? 2 : 1;
}

size_t limit_of(const std::string& name, size_t base) {
  return std::clamp(weight_of(name) * base, kSmallest, kLargest);
}

std::string number_text(double value, int digits) {
  if (!std::isfinite(value)) return number_to_json(value).dump();
  char buffer[40];
  return {
      buffer,
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, digits).ptr};
}

std::string list(const std::vector<double>& values, int digits) {
  std::string text = "[";
  for (const double value : values)
    text += (text.size() > 1 ? "," : "") + number_text(value, digits);
  return text + "]";
}

std::string steps_list(std::vector<double> steps) {
  std::adjacent_difference(steps.begin(), steps.end(), steps.begin());
  return list(steps, 15);
}

/// Whether a curve is a straight line, such as tokens over steps.
bool is_straight(const Series& series) {
  const double x0 = series.x.front(), y0 = series.y.front();
  const double slope = (series.y.back() - y0) / (series.x.back() - x0);
  for (size_t i = 0; i < series.x.size(); ++i)
    if (!(std::abs(y0 + slope * (series.x[i] - x0) - series.y[i]) <= 0.5)) return false;
  return true;
}

/// Tokens or seconds over steps, from which the page computes its other axes.
std::string clock(const Series& series, size_t limit) {
  Series shown;
  if (series.x.size() > 2 && is_straight(series))
    shown = {{series.x.front(), series.x.back()}, {series.y.front(), series.y.back()}};
  else
    shown = downsample(series, limit);
  return "[" + steps_list(shown.x) + "," + list(shown.y, 9) + "]";
}

std::string quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
}

}  // namespace

size_t points_of(const std::vector<ReportRun>& runs, size_t base) {
  size_t points = 0;
  for (const ReportRun& run : runs)
    for (const auto& [name, series] : run.record.metrics.by_name)
      points += std::min(series.x.size(), limit_of(name, base));
  return points;
}

std::string curves_of(const RunRecord& run, size_t base) {
  std::vector<std::string> axes;
  std::string metrics;
  for (const auto& [name, series] : run.metrics.by_name) {
    const Series shown = downsample(series, limit_of(name, base));
    const std::string steps = steps_list(shown.x);
    const auto axis = std::ranges::find(axes, steps);
    const size_t index = size_t(axis - axes.begin());
    if (axis == axes.end()) axes.push_back(steps);
    metrics += (metrics.empty() ? "" : ",") + quoted(name) + ":[" + std::to_string(index) + "," +
               list(shown.y, 5) + "," + std::to_string(series.x.size()) + "]";
  }
  std::string text = "\"x\":[";
  for (size_t i = 0; i < axes.size(); ++i) text += (i ? "," : "") + axes[i];
  const size_t limit = std::clamp<size_t>(base, 16, 200);
  return "{" + text + "],\"metrics\":{" + metrics +
         "},\"tokens\":" + clock(run.metrics.tokens, limit) +
         ",\"time\":" + clock(running_time(run), limit) + "}";
}

}  // namespace dsv3::report
