#include "run_filter.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>

namespace {

// The first of these that the condition contains separates the key from the value.
constexpr std::array<std::string_view, 6> kComparisons{"!=", "<=", ">=", "=", "<", ">"};
constexpr std::array<std::string_view, 8> kFields{"name",   "state",    "experiment", "step",
                                                  "tokens", "duration", "steps",      "started"};

std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
}

std::optional<double> number_of(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string field_of(const dsv3::RunRecord& run, std::string_view field) {
  if (field == "name") return run.name;
  if (field == "state") return run.state;
  if (field == "experiment") return run.experiment;
  const double value = field == "step"       ? double(run.step)
                       : field == "steps"    ? double(run.steps)
                       : field == "tokens"   ? run.tokens
                       : field == "duration" ? run.duration
                                             : run.started;
  return std::isnan(value) ? "" : number_text(value);
}

/// Whether `path` is `key`, or the plugin of a component at `key`: "optimizer.plugin" or
/// "optimizer.0.plugin".
bool names(std::string_view path, std::string_view key) {
  if (!path.starts_with(key)) return false;
  path.remove_prefix(key.size());
  if (path.empty()) return true;
  if (!path.ends_with(".plugin")) return false;
  path.remove_suffix(7);
  return path.empty() || (path[0] == '.' && path.size() > 1 &&
                          path.find_first_not_of("0123456789", 1) == path.npos);
}

/// A value as users write it: without the quotes of YAML, unless it is a list.
std::string plain(const dsv3::ResolvedValue& value) {
  const auto* text = std::get_if<std::string>(&value.value);
  return text && !text->empty() ? *text : value.yaml();
}

template <typename Value>
bool compare(const Value& a, const std::string& comparison, const Value& b) {
  if (comparison == "<") return a < b;
  if (comparison == "<=") return a <= b;
  if (comparison == ">") return a > b;
  if (comparison == ">=") return a >= b;
  return a == b;
}

}  // namespace

std::vector<std::string> values_of(const dsv3::RunRecord& run, const std::string& key) {
  if (std::ranges::count(kFields, key)) {
    const std::string value = field_of(run, key);
    return value.empty() ? std::vector<std::string>() : std::vector{value};
  }
  const auto metric = run.metrics.by_name.find(key);
  if (metric != run.metrics.by_name.end() && !metric->second.y.empty())
    return {number_text(metric->second.y.back())};
  std::vector<std::string> values;
  for (const char* prefix : {"", "model.", "data."}) {
    for (const dsv3::ResolvedValue& value : run.resolved.values)
      if (names(value.path, prefix + key)) values.push_back(plain(value));
    if (!values.empty()) break;
  }
  return values;
}

RunFilter::RunFilter(const std::string& text) {
  const size_t at = text.find_first_of("!<>=");
  for (const std::string_view comparison : kComparisons)
    if (at != text.npos && text.substr(at).starts_with(comparison) && comparison_.empty())
      comparison_ = comparison;
  if (comparison_.empty() || at == 0)
    throw dsv3::Error("--filter '" + text +
                          "' is not a condition; write a setting or metric, one of = != < <= > >= "
                          "and a value, such as 'optimizer=muon' or 'val/loss<4'",
                      dsv3::ExitCode::usage);
  key_ = text.substr(0, at);
  value_ = text.substr(at + comparison_.size());
  if (comparison_.find_first_of("<>") != std::string::npos && !number_of(value_))
    throw dsv3::Error("--filter '" + text + "': '" + value_ +
                          "' is not a number; compare text "
                          "with = or !=",
                      dsv3::ExitCode::usage);
}

bool RunFilter::accepts(const dsv3::RunRecord& run) const {
  const std::optional<double> limit = number_of(value_);
  const bool found = std::ranges::any_of(values_of(run, key_), [&](const std::string& text) {
    const std::optional<double> number = number_of(text);
    if (limit && number) return compare(*number, comparison_, *limit);
    return comparison_.find_first_of("<>") == std::string::npos && text == value_;
  });
  return found != (comparison_ == "!=");
}

void sort_runs(std::vector<dsv3::RunRecord>& runs, const std::string& key) {
  const bool descending = key.starts_with("-");
  const std::string name = key.substr(descending ? 1 : 0);
  require_known(runs, name);
  struct Keyed {
    std::optional<double> number;
    std::string text;
    dsv3::RunRecord run;
  };
  std::vector<Keyed> keyed;
  for (dsv3::RunRecord& run : runs) {
    const std::vector<std::string> values = values_of(run, name);
    const std::string text = values.empty() ? "" : values.front();
    std::optional<double> number = number_of(text);
    if (number && std::isnan(*number)) number.reset();
    keyed.push_back({number, number ? "" : text, std::move(run)});
  }
  std::ranges::stable_sort(keyed, [&](const Keyed& a, const Keyed& b) {
    if (a.number && b.number) return descending ? *a.number > *b.number : *a.number < *b.number;
    if (a.number || b.number) return a.number.has_value();
    if (a.text.empty() || b.text.empty()) return !a.text.empty() && b.text.empty();
    return descending ? a.text > b.text : a.text < b.text;
  });
  runs.clear();
  for (Keyed& entry : keyed) runs.push_back(std::move(entry.run));
}

void require_known(const std::vector<dsv3::RunRecord>& runs, const std::string& key) {
  const auto has_key = [&](const dsv3::RunRecord& run) { return !values_of(run, key).empty(); };
  if (runs.empty() || std::ranges::any_of(runs, has_key)) return;
  std::vector<std::string> known(kFields.begin(), kFields.end());
  for (const dsv3::RunRecord& run : runs) {
    for (const auto& [name, series] : run.metrics.by_name) known.push_back(name);
    for (const dsv3::ResolvedValue& value : run.resolved.values) {
      known.push_back(value.path);
      if (value.path.starts_with("model.") && value.path.ends_with(".plugin"))
        known.push_back(value.path.substr(6, value.path.find('.', 6) - 6));
    }
  }
  std::ranges::sort(known);
  known.erase(std::unique(known.begin(), known.end()), known.end());
  const std::string similar = dsv3::did_you_mean(key, known);
  throw dsv3::Error(
      "no run has a setting or metric '" + key + "'" + (similar.empty() ? "" : "; " + similar),
      dsv3::ExitCode::usage);
}
