// From a request to a run folder with a trainer in it: new runs, runs that go on, and what they
// leave behind.
#include <memory>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/provenance.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "plugin/library.h"
#include "train/differences.h"
#include "train/libraries.h"
#include "train/machine.h"
#include "train/trainer.h"

namespace dsv3 {
namespace {

bool goes_on(const RunRequest& request, const std::filesystem::path& output) {
  if (!request.run_id.empty()) return true;
  return request.resume_auto && std::filesystem::exists(output / request.run_name);
}

/// The experiment a run was started with, from its folder; when the request names an experiment
/// file too, both must agree.
Experiment stored_experiment(const RunRequest& request, const RunFolder& folder, Plugins& plugins) {
  ExperimentRequest stored;
  stored.file = folder.config();
  Experiment experiment = resolve_machine(stored, plugins);
  if (request.experiment.file.empty()) {
    if (!request.experiment.overrides.empty())
      throw Error("a run that goes on keeps its settings, so '" +
                      request.experiment.overrides.front() +
                      "' cannot be set; start a new run from its checkpoint with --from",
                  ExitCode::usage);
    return experiment;
  }
  ExperimentRequest given = request.experiment;
  // What the machine decided at the start stays decided.
  for (const std::string& key :
       {"device=" + experiment.train.device, "precision=" + experiment.train.precision,
        "threads=" + std::to_string(experiment.train.threads)})
    given.forced.push_back("train." + key);
  PluginCatalog catalog(plugins);
  const Experiment wanted = load_experiment(given, catalog);
  if (wanted.resolved != experiment.resolved)
    throw Error("run '" + folder.name() + "' was started with other settings:" +
                    difference_lines(experiment.resolved, wanted.resolved, "in the run", "now") +
                    "\nGo on as it was with --run_id " + folder.name() +
                    " alone, or start a new run from its checkpoint with --from",
                ExitCode::usage);
  return experiment;
}

void write_start(const RunRequest& request, const RunFolder& folder, const Experiment& experiment,
                 const Plugins& plugins, const Trainer& trainer) {
  fs::write_atomically(folder.config(), experiment.resolved);
  if (!request.experiment.file.empty())
    fs::write_atomically(folder.experiment(), fs::read(request.experiment.file));
  Json origin = provenance(request.command, std::filesystem::current_path());
  origin["init_hash"] = trainer.init_hash();
  origin["plugins"] = Json::array();
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    origin["plugins"].push_back({{"name", library.name},
                                 {"version", library.version},
                                 {"path", library.path.string()},
                                 {"sha256", library.sha256}});
  fs::write_atomically(folder.provenance(), origin.dump(2) + "\n");
}

/// Adds what only the end of a run knows.
void write_end(const RunFolder& folder, const Trainer& trainer) {
  Json origin = read_json(folder.provenance());
  origin["data_hash"] = trainer.data_hash();
  fs::write_atomically(folder.provenance(), origin.dump(2) + "\n");
}

const char* state_of(int code) {
  if (code == 0) return "finished";
  return code == static_cast<int>(ExitCode::interrupted) ? "interrupted" : "preempted";
}

/// Starts with the weights that --from names; errors say so.
void start_from(Trainer& trainer, const std::string& from, Plugins& plugins) {
  try {
    trainer.start_from(open_stored_model(from, plugins));
  } catch (const Error& error) {
    const std::string text = error.what();
    throw Error("--from " + (text.starts_with(from) ? "" : from + ": ") + text, error.code());
  }
}

/// While one lives, a crash is told in the run's status.json.
class CrashesInFolder {
 public:
  explicit CrashesInFolder(const RunFolder& folder) { report_crashes_to(folder.status()); }
  ~CrashesInFolder() { report_crashes_to({}); }
};

/// Trains inside `folder` and leaves status.json, also when it throws.
int train_in(const RunRequest& request, RunFolder& folder, Experiment experiment, Plugins& plugins,
             bool resumed) {
  open_log_file(folder.log());
  const CrashesInFolder crashes(folder);
  std::unique_ptr<Trainer> trainer;
  bool started = false;
  try {
    // Settings let a run go on without its first command. With --from they are written only when
    // the weights are kept too, or it would go on with fresh ones.
    if (request.from.empty() && !std::filesystem::exists(folder.config()))
      fs::write_atomically(folder.config(), experiment.resolved);
    folder.write_status("running", std::nullopt, 0, "");
    for (const std::string& note : experiment.notes) log::info(note);
    trainer = std::make_unique<Trainer>(experiment, plugins, folder, request.quiet);
    std::optional<StoredCheckpoint> newest;
    if (resumed)
      newest = CheckpointStore(folder.checkpoints(), experiment.checkpoint.keep_best).newest();
    if (resumed && !newest && !CheckpointStore(folder.checkpoints(), 0).all().empty())
      throw Error("all checkpoints of run '" + folder.name() +
                      "' are damaged (see the warnings), so it cannot go on. Bring one back from a "
                      "copy, or remove " +
                      folder.checkpoints().string() + " to start the run again at step 0",
                  ExitCode::checkpoint);
    if (newest) {
      trainer->restore(*newest);
    } else {
      if (resumed) log::warning("no checkpoint yet: the run starts again at step 0");
      if (!request.from.empty()) start_from(*trainer, request.from, plugins);
    }
    if (!resumed || !std::filesystem::exists(folder.provenance()))
      write_start(request, folder, experiment, plugins, *trainer);
    started = true;
    const int code = trainer->run(resumed);
    write_end(folder, *trainer);
    folder.write_status(state_of(code), code, trainer->step(), "");
    flush_log();
    return code;
  } catch (const std::exception& error) {
    const auto* known = dynamic_cast<const Error*>(&error);
    const ExitCode code = known ? known->code() : ExitCode::failed;
    const std::string text = current_exception_text();
    try {
      // A mistake found before the first step leaves nothing, so that the corrected command works.
      if (folder.created() && !started) {
        close_log_file();
        folder.remove();
      } else {
        folder.write_status("failed", static_cast<int>(code), trainer ? trainer->step() : 0, text);
      }
    } catch (const std::exception& second) {
      log::error(std::string("status.json could not be written: ") + second.what());
    }
    flush_log();
    throw Error(text, code);
  }
}

}  // namespace

int train(const RunRequest& request, Plugins& plugins) {
  std::filesystem::path output = request.output;
  std::optional<Experiment> experiment;
  if (!request.experiment.file.empty()) {
    experiment = resolve_machine(request.experiment, plugins);
    if (output.empty()) output = experiment->output;
    set_log_level(experiment->log_level);
  }
  if (output.empty()) output = "runs";
  const bool resumed = goes_on(request, output);
  RunFolder folder = !request.run_id.empty() ? RunFolder::open(output, request.run_id)
                     : request.resume_auto   ? RunFolder::open_or_create(output, request.run_name)
                                             : RunFolder::create(output, request.run_name);
  if (resumed && std::filesystem::exists(folder.config()))
    experiment = stored_experiment(request, folder, plugins);
  else if (!request.run_id.empty())
    throw Error("run '" + folder.name() +
                    "' was stopped before its settings were written: give its first command again, "
                    "with --run_name " +
                    folder.name() + " --resume auto",
                ExitCode::usage);
  return train_in(request, folder, *experiment, plugins, resumed);
}

}  // namespace dsv3
