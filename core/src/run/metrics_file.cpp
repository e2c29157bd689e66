#include <charconv>
#include <cmath>

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

/// Returns the last line in `text`, which is complete (with its newline) or torn.
std::string_view last_line(std::string_view text) {
  size_t newline = text.size() < 2 ? std::string_view::npos : text.rfind('\n', text.size() - 2);
  return newline == std::string_view::npos ? text : text.substr(newline + 1);
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

MetricsFile::MetricsFile(std::filesystem::path path) : path_(std::move(path)) {
  reopen();
}

void MetricsFile::reopen() {
  std::error_code ignored;
  std::string content = std::filesystem::exists(path_, ignored) ? fs::read(path_) : "";
  std::string_view whole = content;
  // Remove incomplete lines: a killed process leaves a torn line, and a power cut may also leave
  // blocks of zeros.
  while (!whole.empty() && !(whole.ends_with('\n') && parse(last_line(whole))))
    whole.remove_suffix(last_line(whole).size());
  if (whole.size() < content.size()) fs::write_atomically(path_, whole);
  check_lines(whole, path_);

  bytes_ = whole.size();
  lines_ = std::count(whole.begin(), whole.end(), '\n');
  last_step_ = -1;
  at_last_step_.clear();
  while (!whole.empty()) {
    const auto line = parse(last_line(whole));
    if (!line || (last_step_ >= 0 && line->first != last_step_)) break;
    last_step_ = line->first;
    at_last_step_.insert(line->second);
    whole.remove_suffix(last_line(whole).size());
  }
  writer_.emplace(fs::Writer::append(path_));
}

/// Recognises a lost file by its size only, because a file that replaces it usually has another
/// size.
void MetricsFile::reopen_if_lost() {
  std::error_code error;
  if (std::filesystem::file_size(path_, error) == bytes_ && !error) return;
  log::warning(path_.string() +
               " was removed, replaced or cut short while the run wrote it, so "
               "earlier metrics may be lost");
  const int64_t last = last_step_;
  reopen();
  last_step_ = std::max(last, last_step_);
}

bool MetricsFile::append(Event& event) {
  if (writer_) reopen_if_lost();
  if (!writer_) reopen();
  if (event.step < last_step_) return false;
  if (event.step == last_step_ && at_last_step_.contains(first_metric(event))) return false;
  try {
    const std::string line = metrics_line(event);
    writer_->write(line);
    bytes_ += line.size();
  } catch (...) {
    writer_.reset();
    throw;
  }
  event.id = lines_++;
  if (event.step != last_step_) at_last_step_.clear();
  last_step_ = event.step;
  at_last_step_.insert(first_metric(event));
  return true;
}

void MetricsFile::clear() {
  writer_.reset();
  fs::write_atomically(path_, "");
  reopen();
}

void MetricsFile::sync() {
  if (writer_) writer_->sync();
}

}  // namespace dsv3
