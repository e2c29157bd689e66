// Reads what `dsv3 compare` compares: experiment files and run folders.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

#include "compare.h"

namespace {

namespace stdfs = std::filesystem;

// Returns an experiment from an experiment file, or the resolved experiment from a run folder.
dsv3::ExperimentRequest request_of(const std::string& what,
                                   const std::vector<dsv3::MachineFile>& machine_files) {
  dsv3::ExperimentRequest request;
  if (stdfs::is_directory(what)) {
    request.file = stdfs::path(what) / "config.yaml";
    request.stored = true;
    if (!stdfs::exists(request.file))
      throw dsv3::Error(what +
                            " is not a run folder: it has no config.yaml; pass a run folder "
                            "such as runs/NAME, or an experiment file",
                        dsv3::ExitCode::usage);
  } else {
    request.file = what;
    request.machine_files = machine_files;
  }
  return request;
}

dsv3::Experiment load(const std::string& what, const std::vector<dsv3::MachineFile>& machine_files,
                      dsv3::Plugins& plugins) {
  try {
    return dsv3::load_experiment(request_of(what, machine_files), plugins);
  } catch (const dsv3::Error& error) {
    throw dsv3::Error(
        error.what() + (stdfs::is_directory(what) ? dsv3::plugin_advice(what) : std::string()),
        error.code());
  }
}

// The last step of a run that has finished, according to its status.json; else -1.
double finished_at(const std::string& run) {
  const stdfs::path path = stdfs::path(run) / "status.json";
  if (!stdfs::is_regular_file(path)) return -1;
  const dsv3::Json status = dsv3::read_json(path);
  const bool finished = status.is_object() && status.value("state", "") == "finished";
  return finished ? status.value("step", -1.0) : -1;
}

[[noreturn]] void fail_metrics(const stdfs::path& file, int64_t line, const std::string& what) {
  throw dsv3::Error(file.string() + ":" + std::to_string(line) + ": " + what +
                    "; remove the line, or restore the file from a copy");
}

void record(std::map<std::string, Recorded>& found, const std::string& name, double value) {
  const double finite = std::isfinite(value) ? value : NAN;
  const auto [entry, is_new] = found.try_emplace(name, Recorded{value, finite});
  if (!is_new) entry->second = {value, std::fmin(entry->second.best, finite)};
}

// Returns what a run has recorded of each metric; empty for an experiment file.
std::map<std::string, Recorded> recorded_metrics(const std::string& run) {
  std::map<std::string, Recorded> found;
  const stdfs::path path = stdfs::path(run) / "metrics.jsonl";
  if (!stdfs::is_directory(run)) return found;
  if (!stdfs::exists(path)) {
    dsv3::log::warning(path.string() + " is missing, so the run's metrics are unknown");
    return found;
  }
  if (!stdfs::is_regular_file(path))
    throw dsv3::Error(path.string() + " is not a regular file", dsv3::ExitCode::usage);
  std::ifstream file(path);
  if (!file) throw dsv3::Error("cannot read " + path.string() + ": " + std::strerror(errno));
  int64_t number = 0, invalid = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    // The last line may be incomplete, because the run may be writing it.
    if (invalid > 0) fail_metrics(path, invalid, "not a line of metrics");
    const dsv3::Json row = dsv3::Json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("step")) {
      invalid = number;
      continue;
    }
    const double before = found.contains("step") ? found["step"].last : -1;
    for (auto it = row.begin(); it != row.end(); ++it)
      record(found, it.key(), dsv3::number_from_json(it.value()));
    if (found["step"].last < before) fail_metrics(path, number, "the steps are not in order");
  }
  if (found.empty())
    dsv3::log::warning(path.string() + " is empty, so the run's metrics are unknown");
  else if (found["step"].last < finished_at(run))
    dsv3::log::warning(fmt::format("{} ends at step {}, but the run finished at step {}",
                                   path.string(), found["step"].last, finished_at(run)));
  return found;
}

Costs costs_of(const dsv3::Experiment& experiment, dsv3::Plugins& plugins) {
  Costs costs;
  const auto& train = experiment.train;
  costs.tokens = double(dsv3::total_steps(experiment) * train.batch * train.sequence);
  try {
    const dsv3::ModelFigures figures = dsv3::figures(experiment, plugins);
    costs.parameters = double(figures.total);
    costs.active = figures.active;
    if (figures.flops_per_token > 0) costs.flops_per_token = figures.flops_per_token;
  } catch (const dsv3::Error&) {
    // The tokenizer of a run may be on another machine.
  }
  return costs;
}

}  // namespace

std::vector<Item> load_items(const std::vector<std::string>& paths,
                             const std::vector<dsv3::MachineFile>& machine_files,
                             dsv3::Plugins& plugins) {
  std::vector<Item> items;
  for (const std::string& path : paths) {
    dsv3::Experiment experiment = load(path, machine_files, plugins);
    const Costs costs = costs_of(experiment, plugins);
    items.push_back(
        {path, std::move(experiment), costs, recorded_metrics(path), dsv3::read_provenance(path)});
  }
  return items;
}
