#include <charconv>
#include <cmath>

#include <dsv3/runtime/journal_file.h>
#include <dsv3/runtime/metrics_file.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/json.h>

namespace dsv3 {
namespace {

/// The shortest decimal that parses to the same double and looks like a floating-point number.
std::string number_text(double value) {
  if (!std::isfinite(value)) return number_to_json(value).dump();
  char buffer[64];
  auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  std::string text(buffer, end);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string first_metric(const Event& event) {
  return event.metrics.empty() ? std::string() : event.metrics.front().first;
}

/// Returns the step and the first metric in a line; nullopt if it is not a complete line that dsv3
/// wrote.
std::optional<std::pair<int64_t, std::string>> parse(std::string_view text) {
  auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return {};
  const int64_t step = json["step"];
  for (const auto& [key, value] : json.items())
    if (key != "step" && key != "tokens" && key != "time") return std::pair(step, key);
  return std::pair(step, std::string());
}

/// Warns if some lines were not written by dsv3. Does not parse them, because there may be
/// millions.
void check_lines(std::string_view lines, const std::filesystem::path& path) {
  int64_t damaged = 0, first = 0;
  for (int64_t number = 1; !lines.empty(); ++number) {
    const std::string_view line = lines.substr(0, lines.find('\n'));
    lines.remove_prefix(line.size() + 1);
    if (line.starts_with("{\"step\": ") && line.ends_with('}')) continue;
    if (damaged++ == 0) first = number;
  }
  if (damaged > 0)
    log::warning(path.string() + ":" + std::to_string(first) + ": not a line of metrics (" +
                 std::to_string(damaged) + " such line(s)); it is kept and ignored");
}

}  // namespace

std::string metrics_line(const Event& event) {
  std::string line = "{\"step\": " + std::to_string(event.step) +
                     ", \"tokens\": " + std::to_string(event.tokens) +
                     ", \"time\": " + number_text(event.time);
  for (const auto& [name, value] : event.metrics)
    line += ", " +
            Json(without_secrets(name)).dump(-1, ' ', false, Json::error_handler_t::replace) +
            ": " + number_text(value);
  return line + "}\n";
}

MetricsFile::MetricsFile(std::filesystem::path path)
    : file_(
          path, [](std::string_view line) { return parse(line).has_value(); },
          [this, path](std::string_view lines) {
            check_lines(lines, path);
            read_last_step(lines);
          }) {}

void MetricsFile::read_last_step(std::string_view lines) {
  const int64_t before = std::exchange(last_step_, -1);
  at_last_step_.clear();
  while (!lines.empty()) {
    const auto line = parse(last_line(lines));
    if (!line || (last_step_ >= 0 && line->first != last_step_)) break;
    last_step_ = line->first;
    at_last_step_.insert(line->second);
    lines.remove_suffix(last_line(lines).size());
  }
  last_step_ = std::max(last_step_, before);  // of lines that were lost
}

bool MetricsFile::append(Event& event) {
  file_.check();
  if (event.step < last_step_) return false;
  if (event.step == last_step_ && at_last_step_.contains(first_metric(event))) return false;
  event.id = file_.append(metrics_line(event));
  if (event.step != last_step_) at_last_step_.clear();
  last_step_ = event.step;
  last_time_ = event.time;
  at_last_step_.insert(first_metric(event));
  return true;
}

void MetricsFile::clear() {
  last_step_ = -1;
  file_.clear();
}

}  // namespace dsv3
