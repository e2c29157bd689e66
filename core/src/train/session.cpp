// Starts and resumes runs: turns a request into a run folder, a trainer and the run's files.
#include <csignal>
#include <set>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "call/call.h"
#include "machine/machine.h"
#include "run/gpu_provenance.h"
#include "train/trainer.h"

namespace dsv3 {
namespace {

/// Loads the experiment with which a run was started, from the run's `config`, and applies the
/// settings in `changes`.
Experiment stored_experiment(const std::filesystem::path& config, Plugins& plugins,
                             const ExperimentRequest& changes = {}) {
  ExperimentRequest request;
  request.file = config;
  request.stored = true;
  request.settings = changes.settings;
  request.command_line = changes.command_line;
  return load_experiment(request, plugins);
}

/// Throws if the settings in `requested` differ from those of run `name`, which is to be resumed.
void require_same_settings(const std::string& name, const Experiment& stored,
                           Experiment requested) {
  resolve_machine_as(requested, stored);
  const std::string lines =
      difference_lines(stored.resolved, requested.resolved, "in the run", "now");
  if (!lines.empty())
    throw Error("run '" + name + "' was started with other settings:" + lines +
                    "\nResume it unchanged with --run_id " + name +
                    " alone, or start a new run from its checkpoint with --from",
                ExitCode::usage);
}

/// Throws if this machine does not have the device of run `run`, which is to be resumed. A run
/// keeps its device, even if it was chosen by `auto`.
void require_device_of(const Experiment& stored, const std::filesystem::path& run) {
  device_of(stored.train,
            {.alternative = "resume the run on a machine with a GPU or start a new run from its "
                            "weights with --from " +
                            std::filesystem::absolute(run).string() + " --device cpu"});
}

/// Replaces bytes that are not UTF-8, which file names may contain, by U+FFFD.
void write_provenance(const RunFolder& folder, const Json& content) {
  fs::write_atomically(folder.provenance(),
                       content.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

/// What the process that trains the run uses: machine, GPU, versions and plugins.
Json process_provenance(const RunRequest& request, const Experiment& experiment,
                        const Plugins& plugins, const Training& training) {
  Json origin = provenance(request.command, std::filesystem::current_path());
  if (training.device.is_cuda()) origin["gpu"] = gpu_provenance(training.device);
  origin["plugins"] = Json::array();
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    origin["plugins"].push_back({{"name", library.name},
                                 {"version", library.version},
                                 {"path", library.path.string()},
                                 {"sha256", library.sha256}});
  return origin;
}

void write_start(const RunRequest& request, const RunFolder& folder, const Experiment& experiment,
                 const Plugins& plugins, const Training& training) {
  fs::write_atomically(folder.config(), experiment.resolved.yaml());
  if (!request.experiment.file.empty())
    fs::write_atomically(folder.experiment(), fs::read(request.experiment.file));
  Json origin = process_provenance(request, experiment, plugins, training);
  origin["init_hash"] = training.state.init_hash;
  write_provenance(folder, origin);
}

/// Appends this process to the list `resumes` in provenance.json, because the run may have moved to
/// another machine or GPU.
void write_resume(const RunRequest& request, const RunFolder& folder, const Experiment& experiment,
                  const Plugins& plugins, const Training& training) {
  Json origin = read_json(folder.provenance());
  Json resume = process_provenance(request, experiment, plugins, training);
  resume["step"] = training.state.step;
  origin["resumes"].push_back(std::move(resume));
  write_provenance(folder, origin);
}

const char* state_of(int code) {
  if (code == 0) return "finished";
  return code == static_cast<int>(ExitCode::interrupted) ? "interrupted" : "preempted";
}

/// Calls `f` with the model passed in --from. Errors mention the flag and the path.
template <class F>
void with_starting_model(const std::string& from, Plugins& plugins, const F& f) {
  try {
    f(open_stored_model(from, plugins));
  } catch (const Error& error) {
    const std::string text = error.what();
    throw Error("--from " + (text.starts_with(from) ? "" : from + ": ") + text, error.code());
  }
}

/// Warns about plugin libraries that have changed since the checkpoint was saved, because the run
/// may then continue differently.
void warn_of_changed_plugins(const StoredCheckpoint& checkpoint, const Experiment& experiment,
                             const Plugins& plugins) {
  const Json saved = checkpoint.manifest.at("state").value("plugins", Json::object());
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    if (saved.contains(library.name) && saved[library.name] != library.sha256)
      log::warning("plugin '" + library.name + "' (" + library.path.string() +
                   ") has changed since the checkpoint was saved, so the run may not continue "
                   "bit-identically");
}

/// While this object exists, crashes are reported in the run's status.json.
class CrashesInFolder {
 public:
  explicit CrashesInFolder(const RunFolder& folder) { report_crashes_to(folder.status()); }
  ~CrashesInFolder() { report_crashes_to({}); }
};

/// Trains in `folder` and writes status.json, even on an error.
int train_in(const RunRequest& request, RunFolder& folder, Experiment experiment, Plugins& plugins,
             bool resumed) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe, such as `2>&1 | head`, must not end the run
  open_log_file(folder.log());
  const CrashesInFolder crashes(folder);
  std::unique_ptr<Training> training;
  bool started = false;
  try {
    // Write the settings before training, so that the run can be resumed without repeating its
    // first command. With --from, write them only once the weights have been saved, because
    // otherwise a resumed run would start from different weights.
    if (request.from.empty() && !std::filesystem::exists(folder.config()))
      fs::write_atomically(folder.config(), experiment.resolved.yaml());
    folder.write_status("running", std::nullopt, 0, "");
    for (const std::string& note : experiment.notes) log::info(note);
    current_step.on_gpu = experiment.train.device == "cuda";
    if (resumed) require_device_of(experiment, folder.path());
    training = std::make_unique<Training>(experiment, plugins, folder);
    const CheckpointStore checkpoints(folder.checkpoints(), experiment.checkpoint.keep_best);
    const auto newest = resumed ? checkpoints.newest() : std::nullopt;
    if (resumed && !newest && !checkpoints.all().empty())
      throw Error("all checkpoints of run '" + folder.name() +
                      "' are damaged (see the warnings), so it cannot resume. Restore one from a "
                      "copy, or remove " +
                      folder.checkpoints().string() + " to restart the run at step 0",
                  ExitCode::checkpoint);
    if (newest) {
      warn_of_changed_plugins(*newest, experiment, plugins);
      training->restore(*newest);
    } else {
      if (resumed) log::warning("no checkpoint yet: the run restarts at step 0");
      if (!request.from.empty())
        with_starting_model(request.from, plugins,
                            [&](const auto& model) { training->start_from(model); });
    }
    Trainer trainer(*training, resumed, request.quiet);
    if (!resumed || !std::filesystem::exists(folder.provenance()))
      write_start(request, folder, experiment, plugins, *training);
    else
      write_resume(request, folder, experiment, plugins, *training);
    started = true;
    const int code = trainer.run();
    Json origin = read_json(folder.provenance());
    origin["data_hash"] = training->state.data_hash;
    write_provenance(folder, origin);
    folder.write_status(state_of(code), code, training->state.step, "");
    return code;
  } catch (const std::exception& error) {
    const auto* known = dynamic_cast<const Error*>(&error);
    const ExitCode code = known ? known->code() : ExitCode::failed;
    const std::string text = current_exception_text();
    try {
      // If the run failed before the first step, remove its folder so that the corrected command
      // works.
      if (folder.created() && !started) {
        close_log_file();
        folder.remove();
      } else {
        log_to_file(log::Level::error, text);  // the program prints it on the terminal
        folder.write_status("failed", static_cast<int>(code), training ? training->state.step : 0,
                            text);
      }
    } catch (const std::exception& second) {
      log::error(std::string("cannot write status.json: ") + second.what());
    }
    throw Error(text, code);
  }
}

}  // namespace

Experiment check(const RunRequest& request, Plugins& plugins, PreflightScope scope) {
  Experiment experiment = load_experiment(request.experiment, plugins);
  const std::filesystem::path output =
      request.output.empty() ? std::filesystem::path(experiment.output) : request.output;
  const std::string& name = request.run_id.empty() ? request.run_name : request.run_id;
  const std::filesystem::path config = output / name / "config.yaml";
  if (!name.empty() && (request.resume_auto || !request.run_id.empty()) && exists(config)) {
    Experiment stored = stored_experiment(config, plugins);
    resolve_machine(stored);
    require_same_settings(name, stored, experiment);
    if (scope == PreflightScope::everything) require_device_of(stored, output / name);
    resolve_machine_as(experiment, stored);
  } else if (!request.run_name.empty() && !request.resume_auto) {
    RunFolder::require_new(output, request.run_name);
  }
  preflight(experiment, plugins, scope);
  if (!request.from.empty() && scope == PreflightScope::everything)
    with_starting_model(request.from, plugins, [](const auto&) {});
  return experiment;
}

int train(const RunRequest& request, Plugins& plugins) {
  std::filesystem::path output = request.output;
  std::optional<Experiment> experiment;
  if (!request.experiment.file.empty()) {
    experiment = load_experiment(request.experiment, plugins);
    if (output.empty()) output = experiment->output;
    if (!request.quiet) set_log_level(experiment->log_level);
  }
  if (output.empty()) output = "runs";
  const bool resumed = !request.run_id.empty() ||
                       (request.resume_auto && std::filesystem::exists(output / request.run_name));
  if (!resumed) {
    resolve_machine(*experiment);
    preflight(*experiment, plugins, PreflightScope::everything);
  }
  RunFolder folder = !request.run_id.empty() ? RunFolder::open(output, request.run_id)
                     : request.resume_auto
                         ? RunFolder::open_or_create(output, request.run_name)
                         : RunFolder::create(output, request.run_name, experiment->name);
  if (resumed && std::filesystem::exists(folder.config())) {
    Experiment stored = stored_experiment(folder.config(), plugins);
    resolve_machine(stored);
    if (!experiment) experiment = stored_experiment(folder.config(), plugins, request.experiment);
    require_same_settings(folder.name(), stored, std::move(*experiment));
    experiment = std::move(stored);
    if (!request.quiet) set_log_level(experiment->log_level);
  } else if (!request.run_id.empty()) {
    throw Error("run '" + folder.name() +
                    "' was stopped before its settings were written: repeat its first command "
                    "with --run_name " +
                    folder.name() + " --resume auto",
                ExitCode::usage);
  } else {
    resolve_machine(*experiment);
  }
  return train_in(request, folder, *experiment, plugins, resumed);
}

std::vector<LoadedLibrary> libraries_of(const Experiment& experiment, const Plugins& plugins) {
  std::set<std::filesystem::path> used;
  for (const ComponentSpec* spec : experiment.components())
    if (!spec->library.empty())
      used.insert(std::filesystem::weakly_canonical(spec->library));
    else if (const PluginEntry* entry = plugins.find_entry(spec->kind, spec->plugin))
      used.insert(std::filesystem::weakly_canonical(entry->library));
  std::vector<LoadedLibrary> libraries = loaded_libraries();
  std::erase_if(libraries, [&](const auto& library) { return !used.contains(library.path); });
  return libraries;
}

int64_t total_steps(const Experiment& experiment) {
  const TrainOptions& train = experiment.train;
  if (train.steps) return *train.steps;
  const int64_t tokens_per_step = train.batch * train.sequence;
  return (train.tokens.value() + tokens_per_step - 1) / tokens_per_step;
}

}  // namespace dsv3
