// `dsv3-run FILE [key=value ...]`: trains one experiment, or says what it would do.
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>

#include <CLI/CLI.hpp>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>

#include "../usage.h"
#include "arguments.h"

namespace {

using dsv3::Error;
using dsv3::ExitCode;

/// config.yaml of the command line, the working folder, or the source tree that this program was
/// built in.
std::filesystem::path machine_config(const Arguments& a) {
  if (!a.config.empty()) return a.config;
  const auto program = std::filesystem::read_symlink("/proc/self/exe");
  for (const std::filesystem::path& folder :
       {std::filesystem::path("."), program.parent_path().parent_path().parent_path()})
    if (std::filesystem::exists(folder / "config.yaml")) return folder / "config.yaml";
  return {};
}

/// `train.steps = 5` reaches the program as three words, `train.steps= 5` and `train.steps =5` as
/// two.
void check_blanks(const std::vector<std::string>& words) {
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string &word = words[i], &before = words[i - 1];
    const bool is_value = word.find('=') == word.npos && !word.ends_with(".yaml");
    if (!word.starts_with('=') && !(before.ends_with('=') && is_value)) continue;
    const std::string key = before.substr(0, before.find('='));
    throw Error("blanks around the '=' of " + key + ": write " + key +
                    "=VALUE as one word, in quotes if the value holds blanks",
                ExitCode::usage);
  }
}

dsv3::ExperimentRequest experiment_of(const Arguments& a) {
  dsv3::ExperimentRequest request;
  request.machine_config = machine_config(a);
  if (a.debug)
    request.overrides = {"data={plugin: synthetic}", "data.tokenizer=null",
                         "train.steps=50",           "train.batch=4",
                         "train.micro_batch=4",      "train.sequence=256",
                         "train.log_every=1",        "validation.every=0",
                         "validation.batches=1",     "samples.every=0",
                         "checkpoint.every=0",       "tracker=[]"};
  check_blanks(a.words);
  for (const std::string& word : a.words) {
    if (word.find('=') != std::string::npos)
      request.overrides.push_back(word);
    else if (request.file.empty())
      request.file = word;
    else
      throw Error("two experiment files, " + request.file.string() + " and " + word + ": give one",
                  ExitCode::usage);
  }
  if (!a.device.empty()) request.overrides.push_back("train.device=" + a.device);
  if (!a.optimizer.empty()) request.overrides.push_back("optimizer=" + a.optimizer);
  if (!a.strategy.empty()) request.overrides.push_back("strategy=" + a.strategy);
  return request;
}

/// Bytes of "8G", "80GiB", "500M".
int64_t parse_bytes(const std::string& text) {
  size_t end = 0;
  double number = 0;
  try {
    number = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  const std::string unit = text.substr(end);
  double factor = 0;
  if (unit == "G" || unit == "GB")
    factor = 1e9;
  else if (unit == "Gi" || unit == "GiB")
    factor = 1024.0 * 1024 * 1024;
  else if (unit == "M" || unit == "MB")
    factor = 1e6;
  if (end == 0 || factor == 0 || number <= 0)
    throw Error("--gpu_memory '" + text + "' is not a size: write it as 8G, 80GiB or 500M",
                ExitCode::usage);
  return static_cast<int64_t>(number * factor);
}

void check_usage(const Arguments& a, const dsv3::ExperimentRequest& request) {
  const auto refuse = [](const std::string& what) { throw Error(what, ExitCode::usage); };
  if (request.file.empty() && a.run_id.empty())
    refuse("no experiment file: dsv3-run FILE [key=value ...], or dsv3-run --run_id RUN to go on");
  if (!a.run_id.empty() && !a.run_name.empty())
    refuse("--run_id goes on with a run, --run_name starts one: give one of them");
  if (!a.resume.empty() && a.run_name.empty())
    refuse("--resume auto needs to know which run: add --run_name NAME");
  if (!a.from.empty() && !a.run_id.empty())
    refuse("--from starts a new run, --run_id goes on with one: give one of them");
  if (!a.gpu_memory.empty() && !a.dry_run)
    refuse(
        "--gpu_memory goes with --dry-run, which says whether the experiment fits: add --dry-run");
  if ((a.check || a.print_config || a.dry_run) && request.file.empty())
    refuse("no experiment file");
}

int run(int argc, char** argv) {
  CLI::App app("dsv3-run: trains the experiment that a YAML file describes", "dsv3-run");
  Arguments a;
  declare(app, a);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    const char* settings = is<CLI::ExtrasError>(error)  // --lr
                               ? ", settings are given as key=value: train.steps=100"
                               : "";
    throw Error(usage_text(app, error) + settings, ExitCode::usage);
  }
  dsv3::RunRequest request;
  request.experiment = experiment_of(a);
  check_usage(a, request.experiment);
  request.run_name = a.run_name;
  request.run_id = a.run_id;
  request.resume_auto = !a.resume.empty();
  request.from = a.from;
  request.output = a.output;
  request.quiet = a.quiet;
  request.command.assign(argv, argv + argc);

  dsv3::MachineConfig machine;
  if (!request.experiment.machine_config.empty())
    machine = dsv3::read_machine_config(request.experiment.machine_config);
  dsv3::Plugins plugins(dsv3::plugin_search_levels(a.plugin_paths, machine.plugin_paths));
  dsv3::PluginCatalog catalog(plugins);
  if (a.print_config) {
    std::cout << dsv3::print_with_origins(request.experiment, catalog);
    return 0;
  }
  if (a.check) {
    const dsv3::Experiment experiment = dsv3::load_experiment(request.experiment, catalog);
    for (const std::string& note : experiment.notes) std::cout << "note: " << note << '\n';
    std::cout << request.experiment.file.string() << ": ok\n";
    return 0;
  }
  if (a.dry_run) {
    std::optional<int64_t> limit;
    if (!a.gpu_memory.empty()) limit = parse_bytes(a.gpu_memory);
    dsv3::dry_run(dsv3::resolve_machine(request.experiment, plugins), plugins, limit);
    return 0;
  }
  return dsv3::train(request, plugins);
}

int fail(const char* what, ExitCode code) {
  dsv3::flush_log();
  std::cerr << dsv3::error_text(what) << '\n';
  return static_cast<int>(code);
}

}  // namespace

int main(int argc, char** argv) {
  const dsv3::CrashReports crash_reports;
  std::signal(SIGXFSZ, SIG_IGN);  // a file over ulimit -f is an error, no death
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    return fail(error.what(), error.code());
  } catch (const std::exception& error) {
    return fail(error.what(), ExitCode::failed);
  }
}
