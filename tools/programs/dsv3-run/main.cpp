// `dsv3-run FILE [key=value ...]`: trains one experiment, or reports what it would do.
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/launch.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/sync.h>
#include <dsv3/runtime/trackers.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/utf8.h>

#include "arguments.h"
#include "common/command_line.h"
#include "common/standard_streams.h"

namespace {

using dsv3::Error;
using dsv3::ExitCode;

/// Returns the files with machine defaults. Without --config, config.yaml is read from the current
/// folder, or else from the source tree that contains this program.
std::vector<dsv3::MachineFile> machine_files(const Arguments& a) {
  const auto program = std::filesystem::read_symlink("/proc/self/exe");
  return dsv3::machine_files(a.config, {".", program.parent_path().parent_path().parent_path()});
}

/// Rejects spaces around '='. The shell passes `train.steps = 5` as three arguments, and
/// `train.steps= 5` and `train.steps =5` as two.
void check_spaces(const std::vector<std::string>& words) {
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string &word = words[i], &before = words[i - 1];
    const bool is_value = word.find('=') == word.npos && !word.ends_with(".yaml");
    if (!word.starts_with('=') && !(before.ends_with('=') && is_value)) continue;
    const std::string key = before.substr(0, before.find('='));
    throw Error("spaces around '=' after " + key + "; write " + key +
                    "=VALUE without spaces, and quote it if the value contains any",
                ExitCode::usage);
  }
}

/// Whether `word` is a key=value override. File names may also contain '=', so the name of an
/// existing .yaml file is not an override.
bool is_setting(const std::string& word) {
  const size_t equals = word.find('=');
  if (equals == word.npos || word.find('/') < equals) return false;
  return !(word.ends_with(".yaml") && std::filesystem::exists(word));
}

std::vector<dsv3::Setting> debug_settings() {
  const std::vector<std::pair<const char*, dsv3::OptionValue>> values{
      {"data.plugin", "synthetic"},
      {"data.tokenizer", std::monostate()},
      {"train.steps", int64_t{50}},
      {"train.batch", int64_t{4}},
      {"train.micro_batch", "auto"},
      {"train.sequence", int64_t{256}},
      {"train.log_every", int64_t{1}},
      {"validation.every", int64_t{0}},
      // The experiment's schedule might warm up for longer than these 50 steps.
      {"schedule.plugin", "constant"},
      {"schedule.warmup", int64_t{0}},
      {"validation.batches", int64_t{1}},
      {"samples.every", int64_t{0}},
      {"checkpoint.every", int64_t{0}},
      {"tracker", std::vector<std::string>()}};
  std::vector<dsv3::Setting> settings;
  for (const auto& [path, value] : values) settings.push_back({path, value, "--debug"});
  return settings;
}

dsv3::ExperimentRequest experiment_of(const Arguments& a) {
  dsv3::ExperimentRequest request;
  request.machine_files = machine_files(a);
  if (a.debug) {
    request.settings = debug_settings();
    request.debug_vocab = 1024;
  }
  for (const std::string& tag : a.tags) {
    const size_t equals = tag.find('=');
    if (dsv3::valid_prefix(tag) != tag.size())
      throw Error("--tag " + dsv3::printable_line(tag) + " is not valid UTF-8; correct it",
                  ExitCode::usage);
    request.settings.push_back({"tags." + tag.substr(0, equals), tag.substr(equals + 1), "--tag"});
  }
  check_spaces(a.words);
  for (const std::string& word : a.words) {
    if (is_setting(word))
      request.command_line.push_back(word);
    else if (request.file.empty())
      request.file = word;
    else
      throw Error(
          "two experiment files, " + request.file.string() + " and " + word + "; pass only one",
          ExitCode::usage);
  }
  if (!a.device.empty()) request.command_line.push_back("train.device=" + a.device);
  if (!a.optimizer.empty()) request.command_line.push_back("optimizer=" + a.optimizer);
  if (!a.strategy.empty()) request.command_line.push_back("strategy=" + a.strategy);
  return request;
}

int64_t gpu_bytes(const std::string& text) {
  const std::optional<int64_t> bytes = parse_bytes(text);
  const bool has_unit = !text.empty() && std::isalpha(static_cast<unsigned char>(text.back()));
  if (bytes && *bytes > 0 && has_unit) return *bytes;
  throw Error("invalid --gpu-memory '" + text + "'; expected a size such as 8G, 80GiB or 500M",
              ExitCode::usage);
}

/// Returns the flags with which a run must be resumed.
std::vector<std::string> resume_flags(const Arguments& a) {
  std::vector<std::string> flags;
  const auto add = [&](const char* flag, const std::string& path) {
    flags.insert(flags.end(), {flag, std::filesystem::absolute(path).lexically_normal().string()});
  };
  for (const std::string& path : a.plugin_paths) add("--plugin-path", path);
  if (!a.config.empty()) add("--config", a.config);
  return flags;
}

void check_usage(const Arguments& a, const dsv3::ExperimentRequest& request) {
  const auto reject = [](const std::string& what) { throw Error(what, ExitCode::usage); };
  if (request.file.empty() && a.run_id.empty() && a.branch.empty())
    reject(
        "no experiment file: dsv3-run FILE [key=value ...], or dsv3-run --run_id RUN to resume a "
        "run");
  if (!a.run_id.empty() && !a.run_name.empty())
    reject("--run_id resumes a run, --run_name starts one: use only one of them");
  if (!a.resume.empty() && a.run_name.empty())
    reject("--resume auto requires the name of the run: add --run_name NAME");
  if (!a.from.empty() && !a.run_id.empty())
    reject("--from starts a new run, --run_id resumes one: use only one of them");
  if (!a.branch.empty() && !(a.run_id.empty() && a.from.empty()))
    reject(
        "--branch starts a new run from another run's state: use it without --run_id and --from");
  if (!a.gpu_memory.empty() && !a.dry_run)
    reject(
        "--gpu_memory requires --dry-run, which reports whether the experiment fits: add "
        "--dry-run");
  if (a.config_only && !a.check) reject("--config-only requires --check: add --check");
  if ((a.check || a.print_config || a.dry_run) && request.file.empty())
    reject(
        "--check, --print-config and --dry-run require an experiment file; for a run, pass the "
        "config.yaml in its folder");
  for (const std::string& name : {a.run_name, a.run_id})
    if (!name.empty()) dsv3::check_run_name(name);
}

/// Downloads the run to resume if it is not on this machine, but a tracker's service has it.
void download_run(dsv3::RunRequest& request, const Arguments& a,
                  const dsv3::MachineConfig& machine) {
  const std::string& id = request.run_id;
  const std::filesystem::path output =
      request.output.empty() ? request.usual_output : request.output.string();
  std::error_code ignored;
  // Only the first process of a run may write, and the launcher does so before there are others.
  if (std::filesystem::exists(output / id, ignored) || !request.experiment.file.empty() ||
      request.ranks.world > 1 || request.tracker_settings.empty() ||
      !dsv3::announced_run().empty() || !dsv3::run_with_tracker_id(output, id).empty())
    return;
  dsv3::Plugins plugins(dsv3::plugin_search_levels(a.plugin_paths, machine.plugin_paths));
  const std::string name = dsv3::fetch_run(output, id, plugins, request.tracker_settings);
  if (!name.empty())
    dsv3::log::info("downloaded run " + (output / name).string() + " to resume it");
}

/// Resumes the run that was interrupted by the failure of a rank.
void resume_announced_run(dsv3::RunRequest& request) {
  const std::string name = dsv3::announced_run();
  if (name.empty() || !request.run_id.empty()) return;
  request.run_name = name;
  request.resume_auto = true;
}

int run(int argc, char** argv) {
  const dsv3::CrashReports crash_reports;
  CLI::App app("Train the experiment that a YAML file describes", "dsv3-run");
  Arguments a;
  declare(app, a);
  try {
    parse_command_line(app, argc, argv,
                       "; set configuration values as key=value, e.g. train.steps=100");
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  }
  if (a.backtrace) dsv3::print_backtraces();
  dsv3::RunRequest request;
  request.experiment = experiment_of(a);
  const dsv3::MachineConfig machine = dsv3::read_machine_config(request.experiment.machine_files);
  if (a.run_id.empty() && a.run_name.empty() && a.from.empty() && a.branch.empty())
    a.run_id = machine.run_id;
  check_usage(a, request.experiment);
  request.run_name = a.run_name;
  request.run_id = a.run_id;
  request.resume_auto = !a.resume.empty();
  request.from = a.from;
  request.branch = a.branch;
  request.output = a.output;
  request.profile = a.profile;
  request.ranks = dsv3::rank_context(dsv3::environment());
  // The first rank shows what all do. The others have log files.
  request.quiet = a.quiet || request.ranks.rank > 0;
  if (request.quiet) dsv3::set_log_level("error");
  request.command.assign(argv, argv + argc);
  resume_announced_run(request);

  if (!machine.output.empty()) request.usual_output = machine.output;
  request.tracker_settings = dsv3::machine_settings(request.experiment.machine_files);
  request.resume_flags = resume_flags(a);
  const bool trains = !(a.check || a.print_config || a.dry_run);
  if (!trains) request.ranks.world = a.num_gpus.value_or(request.ranks.world);
  if (trains && !request.run_id.empty()) download_run(request, a, machine);
  if (trains && dsv3::must_launch(request.ranks, a.num_gpus, a.max_restarts))
    return dsv3::launch(
        {request.command, a.num_gpus.value_or(1), a.max_restarts, dsv3::correct_status});
  dsv3::Plugins plugins(dsv3::plugin_search_levels(a.plugin_paths, machine.plugin_paths));
  if (a.print_config) {
    set_output(Output::escaped);
    std::cout << dsv3::load_experiment(request.experiment, plugins).resolved.yaml(true);
    return 0;
  }
  if (a.check) {
    const dsv3::Experiment experiment = dsv3::check(
        request, plugins,
        a.config_only ? dsv3::PreflightScope::configuration : dsv3::PreflightScope::everything);
    for (const std::string& note : experiment.notes)
      std::cout << "note: " << dsv3::printable_line(note) << '\n';
    std::cout << dsv3::printable_line(request.experiment.file.string()) << ": ok"
              << (a.config_only ? " (inputs not checked)" : "") << '\n';
    return 0;
  }
  if (a.dry_run) {
    std::optional<int64_t> limit;
    if (!a.gpu_memory.empty()) limit = gpu_bytes(a.gpu_memory);
    dsv3::Experiment experiment = dsv3::load_experiment(request.experiment, plugins);
    dsv3::resolve_machine(experiment);
    dsv3::choose_strategy(experiment, plugins, request.ranks.world, request.ranks.world);
    dsv3::dry_run(experiment, plugins, limit, request.ranks.world);
    return 0;
  }
  allow_failing_output();  // a run's results are in its folder
  return dsv3::train(request, plugins);
}

}  // namespace

int main(int argc, char** argv) {
  const int code = run_program(argc, argv, run);
  dsv3::close_log_file();
  if (dsv3::has_busy_trackers()) _exit(code);  // a tracker's thread still runs
  return code;
}
