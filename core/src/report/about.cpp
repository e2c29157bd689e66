// What a report says about a run besides its curves.
#include <algorithm>
#include <cmath>

#include <dsv3/runtime/printable.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/utf8.h>

#include "report/data.h"

namespace dsv3::report {
namespace {

namespace stdfs = std::filesystem;

constexpr size_t kLongText = 1000;  // bytes of one value
constexpr size_t kLogTail = 1 << 20;
constexpr size_t kMessages = 10;  // warnings of a run

/// Cuts UTF-8 text to at most `size` bytes.
std::string shortened(const std::string& text, size_t size) {
  if (text.size() <= size) return text;
  std::string cut = text.substr(0, size);
  cut.resize(cut.size() - incomplete_character(cut));
  return cut + "…";
}

Json known(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Returns the value at a path such as {"git", "commit"}; null if there is none.
Json at(const Json& object, std::initializer_list<const char*> path) {
  Json value = object;
  for (const char* key : path) {
    if (!value.is_object() || !value.contains(key)) return nullptr;
    value = Json(value[key]);
  }
  return value;
}

Json provenance_of(const RunRecord& run) {
  const Json& all = run.provenance;
  Json rows = Json::array();
  const auto add = [&](const char* label, const Json& value) {
    if (!value.is_null()) rows.push_back({label, shortened(text_of(value), kLongText)});
  };
  std::string command;
  if (const Json words = at(all, {"command"}); words.is_array())
    for (const Json& word : words)
      command += (command.empty() ? "" : " ") + shell_quoted(text_of(word));
  add("folder", run.path.string());
  add("command", command.empty() ? Json() : Json(command));
  add("started", at(all, {"time"}));
  add("host", at(all, {"host"}));
  add("git commit", at(all, {"git", "commit"}));
  add("uncommitted changes", at(all, {"git", "dirty"}));
  for (const char* key : {"dsv3", "libtorch", "compiler", "threads"}) add(key, at(all, {key}));
  add("CPU", at(all, {"cpu", "model"}));
  add("CPU capability", at(all, {"cpu", "capability"}));
  add("GPU", at(all, {"gpu"}));
  for (const char* key : {"branched_from", "started_from", "init_hash", "data_hash",
                          "documents_hash", "validation_hash"})
    add(key, at(all, {key}));
  if (const Json resumes = at(all, {"resumes"}); resumes.is_array() && !resumes.empty())
    add("times resumed", resumes.size());
  return rows;
}

/// Returns the samples, oldest first. Drops old ones, and shortens the last one, to fit `bytes`.
Json samples_of(const stdfs::path& run, size_t bytes) {
  std::vector<stdfs::path> files;
  std::error_code error;
  for (stdfs::directory_iterator it(run / "samples", error), end; !error && it != end;
       it.increment(error))
    if (it->path().extension() == ".txt" && stdfs::is_regular_file(it->symlink_status(error)))
      files.push_back(it->path());
  std::ranges::sort(files, std::greater());
  Json samples = Json::array();
  for (const stdfs::path& file : files) {
    if (bytes < 100) break;
    std::string text;
    try {
      text = fs::read(file, 16 << 20);
    } catch (const std::exception&) {
      continue;
    }
    text = shortened(text, samples.empty() ? bytes : std::min<size_t>(bytes, 4000));
    bytes -= std::min(bytes, text.size());
    samples.push_back({{"file", file.stem().string()}, {"text", text}});
  }
  std::reverse(samples.begin(), samples.end());
  return samples;
}

/// The last warnings and errors in log.txt.
Json messages_of(const stdfs::path& run) {
  std::error_code error;
  const stdfs::path path = run / "log.txt";
  Json messages = Json::array();
  if (!stdfs::is_regular_file(stdfs::symlink_status(path, error))) return messages;
  std::string text;
  try {
    fs::read_pieces(path, [&](std::string_view piece) {
      text += piece;
      if (text.size() > 2 * kLogTail) text.erase(0, text.size() - kLogTail);
    });
  } catch (const std::exception&) {
    return messages;
  }
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const std::string start = line.substr(0, 48);  // time and level
    if (start.find(" warning ") != start.npos || start.find(" error ") != start.npos)
      messages.push_back(shortened(line, 400));
    if (messages.size() > kMessages) messages.erase(messages.begin());
    begin = end + 1;
  }
  return messages;
}

/// The last value of a metric and its minimum, from all recorded points.
Json summary_of(const RunMetrics& metrics, const char* name) {
  const auto found = metrics.by_name.find(name);
  if (found == metrics.by_name.end()) return nullptr;
  double best = INFINITY;
  for (const double y : found->second.y) best = std::fmin(best, y);
  return {{"last", number_to_json(found->second.y.back())}, {"best", known(best)}};
}

/// How often training went wrong, from all recorded points.
Json faults_of(const RunMetrics& metrics) {
  size_t broken = 0;
  double skipped = 0, alarms = 0;
  for (const auto& [name, series] : metrics.by_name)
    for (const double y : series.y) {
      broken += name == "train/loss" && !std::isfinite(y);
      if (name == "train/skipped") skipped += y;
      if (name.ends_with("/alarms")) alarms += y;  // of a callback
    }
  return {{"not_finite", broken}, {"skipped", known(skipped)}, {"alarms", known(alarms)}};
}

}  // namespace

Json about_run(const ReportRun& run, size_t sample_bytes) {
  const RunRecord& record = run.record;
  const auto maybe = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  Json problems = Json::array();
  for (const std::string& problem : record.problems)
    problems.push_back(shortened(problem, kLongText));
  return {{"name", record.name},
          {"experiment", record.experiment},
          {"state", record.state},
          {"message", shortened(record.message, kLongText)},
          {"step", record.step},
          {"steps", record.steps},
          {"tokens", record.tokens},
          {"started", known(record.started)},
          {"duration", known(record.duration)},
          {"rate", known(record.metrics.last("throughput/tokens_per_s"))},
          {"parameters", maybe(run.parameters)},
          {"flops_per_token", maybe(run.flops_per_token)},
          {"train", summary_of(record.metrics, "train/loss")},
          {"val", summary_of(record.metrics, "val/loss")},
          {"faults", faults_of(record.metrics)},
          {"problems", problems},
          {"messages", messages_of(record.path)},
          {"samples", samples_of(record.path, sample_bytes)},
          {"provenance", provenance_of(record)}};
}

Json settings_of(const std::vector<ReportRun>& runs) {
  std::vector<std::string> keys;
  std::map<std::string, std::vector<Json>> by_key;  // null where a run has no such setting
  for (size_t i = 0; i < runs.size(); ++i)
    for (const ResolvedValue& value : runs[i].record.resolved.values) {
      auto [found, is_new] = by_key.try_emplace(value.path, runs.size());
      if (is_new) keys.push_back(value.path);
      found->second[i] = shortened(value.yaml(), 200);
    }
  Json common = Json::array(), differing = Json::array();
  for (const std::string& key : keys) {
    const std::vector<Json>& values = by_key[key];
    if (std::ranges::all_of(values, [&](const Json& value) { return value == values[0]; })) {
      common.push_back({key, values[0]});
      continue;
    }
    std::vector<Json> different;
    Json of = Json::array();
    for (const Json& value : values) {
      const auto found = std::ranges::find(different, value);
      of.push_back(value.is_null() ? -1 : int(found - different.begin()));
      if (!value.is_null() && found == different.end()) different.push_back(value);
    }
    differing.push_back({{"key", key}, {"values", different}, {"of", of}});
  }
  return {{"common", common}, {"differing", differing}};
}

}  // namespace dsv3::report
