#include <algorithm>
#include <cmath>
#include <ctime>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/run_record.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "support/host.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr double kUnknown = RunRecord::kUnknown;
constexpr uint64_t kSmallFile = 16 << 20;  // no run writes a larger status or configuration
constexpr uint64_t kTail = 256 << 10;      // of metrics.jsonl

/// Reads a regular file of a run folder, which may come from someone else: never waits at a FIFO.
std::string read_small(const stdfs::path& path) {
  std::error_code error;
  const stdfs::file_status status = stdfs::symlink_status(path, error);
  const std::string name = path.filename().string();
  if (status.type() == stdfs::file_type::not_found) throw Error(name + " is missing");
  if (!stdfs::is_regular_file(status)) throw Error(name + " is not a regular file");
  return fs::read(path, kSmallFile);
}

/// Calls `read`, and turns its error into a problem of the run.
template <typename Read>
void attempt(RunRecord& run, const char* file, const Read& read) {
  try {
    read();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    const std::string what = text.substr(0, text.find('\n'));
    run.problems.push_back(what.find(file) == what.npos ? std::string(file) + ": " + what : what);
  }
}

/// Seconds since the epoch of a time such as 2026-01-31T23:59:59Z.
double seconds_of(const Json& time) {
  return time.is_string() ? dsv3::seconds_of(time.get<std::string>()).value_or(kUnknown) : kUnknown;
}

/// Whether another process has locked the run. Asks for a shared lock for a moment, which leaves an
/// existing lock alone; a run that starts in this moment tries again.
bool is_locked(const stdfs::path& run) {
  const int fd = ::open((run / "lock").c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return false;
  const bool locked = ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return locked;
}

void read_status(RunRecord& run) {
  const bool locked = is_locked(run.path);
  run.state = locked ? "running" : "damaged";
  std::error_code error;
  if (locked && !stdfs::exists(run.path / "status.json", error)) return;  // it starts
  attempt(run, "status.json", [&] {
    const Json status = parse_json(read_small(run.path / "status.json"), "status.json");
    if (!status.is_object() || !status.contains("state") || !status["state"].is_string())
      throw Error("status.json contains no state");
    run.state = status["state"];
    if (run.state == "running" && !locked) run.state = "crashed";
    const auto text = [&](const char* key) {
      return status.contains(key) && status[key].is_string() ? status[key].get<std::string>() : "";
    };
    run.message = text("message");
    if (status.contains("step") && status["step"].is_number()) run.step = status["step"];
    run.updated = status.contains("time") ? seconds_of(status["time"]) : kUnknown;
  });
}

/// A number in the experiment, or NaN.
double number_at(const Resolved& resolved, const std::string& path) {
  const ResolvedValue* value = resolved.find(path);
  if (!value) return kUnknown;
  const std::string text = value->yaml();
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  return end != text.c_str() && *end == 0 ? number : kUnknown;
}

void read_config(RunRecord& run) {
  attempt(run, "config.yaml", [&] {
    run.resolved = read_resolved(read_small(run.path / "config.yaml"));
    if (const ResolvedValue* name = run.resolved.find("name"))
      if (const auto* text = std::get_if<std::string>(&name->value)) run.experiment = *text;
    const double per_step =
        number_at(run.resolved, "train.batch") * number_at(run.resolved, "train.sequence");
    double steps = number_at(run.resolved, "train.steps");
    if (std::isnan(steps)) steps = std::ceil(number_at(run.resolved, "train.tokens") / per_step);
    if (steps >= 0 && steps < 1e15) run.steps = int64_t(steps);
  });
}

/// When the run's processes started, in seconds since the epoch.
std::vector<double> process_starts(const Json& provenance) {
  std::vector<double> starts;
  if (provenance.contains("time")) starts.push_back(seconds_of(provenance["time"]));
  const auto resumes = provenance.find("resumes");
  if (resumes != provenance.end() && resumes->is_array())
    for (const Json& resume : *resumes)
      if (resume.is_object() && resume.contains("time"))
        starts.push_back(seconds_of(resume["time"]));
  std::erase_if(starts, [](double start) { return std::isnan(start); });
  return starts;
}

/// The seconds between two times for which a process ran: those since the last start between them.
double ran_between(double from, double to, const std::vector<double>& starts) {
  for (const double start : starts)
    if (start > from && start <= to) from = start;
  return std::max(0.0, to - from);
}

double duration_of(const RunRecord& run) {
  const Series ran = running_time(run);
  const std::vector<double> starts = process_starts(run.provenance);
  const double end = run.state == "running" ? wall_seconds() : run.updated;
  if (ran.x.empty()) return starts.empty() ? kUnknown : ran_between(starts.back(), end, {});
  return ran.y.back() + ran_between(run.metrics.time.y.back(), end, starts);
}

void read_metrics_of(RunRecord& run, ReadMetrics extent) {
  attempt(run, "metrics.jsonl", [&] {
    // The pauses of a resumed run are known only from all lines.
    const bool all = extent == ReadMetrics::all || process_starts(run.provenance).size() > 1;
    run.metrics = read_metrics(run.path, all ? UINT64_MAX : kTail);
    if (!all && std::isnan(run.metrics.last("val/loss")))  // it may be recorded rarely
      run.metrics = read_metrics(run.path);
    const RunMetrics& metrics = run.metrics;
    if (!metrics.tokens.x.empty()) {
      run.step = std::max(run.step, int64_t(metrics.tokens.x.back()));
      run.tokens = metrics.tokens.y.back();
    }
    if (!metrics.time.y.empty()) run.updated = std::fmax(run.updated, metrics.time.y.back());
    if (metrics.damaged_lines > 0)
      throw Error("metrics.jsonl: " + std::to_string(metrics.damaged_lines) +
                  " line(s) are not metrics");
  });
}

}  // namespace

Series running_time(const RunRecord& run) {
  const std::vector<double> starts = process_starts(run.provenance);
  Series ran;
  const Series& time = run.metrics.time;
  double total = 0, before = starts.empty() ? kUnknown : starts.front();
  for (size_t i = 0; i < time.x.size(); ++i) {
    if (!std::isfinite(time.y[i])) continue;
    if (!std::isnan(before)) total += ran_between(before, time.y[i], starts);
    before = time.y[i];
    ran.x.push_back(time.x[i]);
    ran.y.push_back(total);
  }
  return ran;
}

RunRecord read_run(const stdfs::path& path, ReadMetrics extent) {
  RunRecord run;
  run.path = path;
  stdfs::path folder = stdfs::absolute(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  run.name = folder.filename().string();
  read_status(run);
  read_config(run);
  attempt(run, "provenance.json", [&] {
    Json content = parse_json(read_small(path / "provenance.json"), "provenance.json");
    if (!content.is_object()) throw Error("provenance.json is not an object");
    run.provenance = std::move(content);
    if (const std::vector<double> starts = process_starts(run.provenance); !starts.empty())
      run.started = starts.front();
  });
  read_metrics_of(run, extent);
  run.duration = duration_of(run);
  return run;
}

bool is_run_folder(const stdfs::path& folder) {
  std::error_code error;
  for (const char* file : {"status.json", "metrics.jsonl", "provenance.json", "checkpoints"})
    if (stdfs::exists(stdfs::symlink_status(folder / file, error))) return true;
  return false;
}

std::vector<stdfs::path> find_runs(const stdfs::path& folder) {
  std::vector<stdfs::path> runs;
  std::error_code error, ignored;
  stdfs::directory_iterator it(folder, error);
  for (; !error && it != stdfs::directory_iterator(); it.increment(error))
    if (it->is_directory(ignored) && is_run_folder(it->path())) runs.push_back(it->path());
  if (error)
    throw Error("cannot list " + folder.string() + ": " + error.message() +
                    "; pass the folder that contains your runs",
                ExitCode::usage);
  std::sort(runs.begin(), runs.end());
  return runs;
}

}  // namespace dsv3
