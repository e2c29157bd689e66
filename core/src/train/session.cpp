// Runs a prepared session: builds and restores the run, trains it and writes its files.
#include "train/session.h"

#include <set>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "call/checked.h"
#include "machine/machine.h"
#include "ranks/exchange.h"
#include "run/gpu_provenance.h"
#include "run/run_info.h"
#include "support/checked_math.h"
#include "support/host.h"
#include "train/signals.h"
#include "train/trainer.h"

namespace dsv3 {
namespace {

/// Replaces bytes that are not UTF-8, which file names may contain, by U+FFFD.
void write_provenance(const RunFolder& folder, const Json& content) {
  fs::write_atomically(folder.provenance(),
                       content.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

/// What the process that trains the run uses: machine, GPU, versions and plugins.
Json process_provenance(const RunRequest& request, const Experiment& experiment,
                        const Plugins& plugins, const Training& training) {
  std::vector<std::string> command = request.command;
  for (std::string& word : command) word = without_secrets(word);
  Json origin = provenance(command, std::filesystem::current_path());
  if (training.device.is_cuda()) origin["gpu"] = gpu_provenance(training.device);
  origin["ranks"] = training.ranks.size();
  origin["plugins"] = Json::array();
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    origin["plugins"].push_back({{"name", library.name},
                                 {"version", library.version},
                                 {"path", library.path.string()},
                                 {"sha256", library.sha256}});
  return origin;
}

/// Writes config.yaml last, because a run with this file can be resumed.
void write_start(const RunRequest& request, const RunFolder& folder, const Experiment& experiment,
                 const Plugins& plugins, const Training& training, const Start& start) {
  if (!request.experiment.file.empty())
    fs::write_atomically(folder.experiment(), fs::read(request.experiment.file));
  Json origin = process_provenance(request, experiment, plugins, training);
  origin["init_hash"] = training.state.init_hash;
  origin["initial_hashes"] = training.initial_hashes;
  if (!request.experiment.file.empty())
    origin["experiment"] = std::filesystem::absolute(request.experiment.file).string();
  // A run that starts again before its first checkpoint remains the same run.
  origin["uid"] = read_provenance(folder.path()).value("uid", new_run_uid());
  origin["documents_hash"] = training.documents_hash;
  origin["validation_hash"] = training.state.validation_hash;
  if (!request.from.empty())
    origin["started_from"] = std::filesystem::absolute(request.from).string();
  if (const auto& branch = start.branch)
    origin["branched_from"] = {{"run", std::filesystem::absolute(branch->run).string()},
                               {"uid", read_provenance(branch->run).value("uid", "")},
                               {"step", branch->checkpoint.step},
                               {"sha256", branch->checkpoint.manifest.at("sha256")},
                               {"changes", start.changes}};
  write_provenance(folder, origin);
  fs::write_atomically(folder.config(), experiment.resolved.yaml());
}

/// Appends this process to the list `resumes` in provenance.json, because the run may have moved to
/// another machine or GPU.
void write_resume(const RunRequest& request, const RunFolder& folder, const Experiment& experiment,
                  const Plugins& plugins, const Training& training, const Json& changes) {
  Json origin = read_provenance(folder.path());
  if (!origin.contains("uid")) origin["uid"] = new_run_uid();
  Json resume = process_provenance(request, experiment, plugins, training);
  resume["step"] = training.state.step;
  if (!changes.empty()) resume["changes"] = changes;
  origin["resumes"].push_back(std::move(resume));
  write_provenance(folder, origin);
}

/// While this object exists, crashes are reported in the run's status.json.
class CrashesInFolder {
 public:
  explicit CrashesInFolder(const RunFolder& folder) { report_crashes_to(folder.status()); }
  ~CrashesInFolder() { report_crashes_to({}); }
};

/// Copies the files of the tokenizer, so that the run can be used where they do not exist.
void store_tokenizer(const RunFolder& folder, const ComponentSpec& tokenizer, Plugins& plugins) {
  if (tokenizer.plugin.empty()) return;
  for (const OptionSpec& option : plugins.find(tokenizer).schema->options) {
    const auto value = tokenizer.options.find(option.key);
    if (!option.input_path || value == tokenizer.options.end()) continue;
    const auto* file = std::get_if<std::string>(&value->second);
    if (!file || !std::filesystem::is_regular_file(*file)) continue;
    fs::make_folders(folder.tokenizer());
    fs::write_atomically(
        folder.tokenizer() / (option.key + std::filesystem::path(*file).extension().string()),
        fs::read(*file));
  }
}

std::string shown(const Json& value) {
  const std::string text = value.get<std::string>();
  return text.empty() ? "unset" : text;
}

/// Logs the settings that a resumed or branched run changes. A longer run may change the learning
/// rate, if the schedule depends on the number of steps.
void report_changes(const Json& changes, const Experiment& stored, const Training& training) {
  for (const Json& change : changes)
    log::info(change["key"].get<std::string>() + " changes from " + shown(change["before"]) +
              " to " + shown(change["after"]));
  const int64_t before = total_steps(stored), next = training.state.step + 1;
  if (before == training.steps || training.state.step == 0) return;
  const auto factor = [&](int64_t steps) {
    return checked::number(*training.schedule, "factor", &Schedule::factor, std::min(next, steps),
                           steps);
  };
  if (const double planned = factor(before), now = factor(training.steps); planned != now)
    log::warning(c10::str("the schedule depends on the number of steps: its factor for step ", next,
                          " is ", now, " instead of ", planned));
}

/// A run in its folder, from the first file that it writes to status.json.
class Session {
 public:
  Session(const RunRequest& request, RunFolder& folder, Ranks ranks, Experiment experiment,
          Plugins& plugins, Start start)
      : request_(request),
        folder_(folder),
        ranks_(std::move(ranks)),
        experiment_(std::move(experiment)),
        plugins_(plugins),
        start_(std::move(start)) {}

  /// Trains, and writes status.json, even on an error. Returns the exit code.
  int run() {
    open_log_file(folder_.log(ranks_.control->rank()));
    std::optional<CrashesInFolder> crashes;
    if (ranks_.is_first()) crashes.emplace(folder_);
    std::optional<StopSignals> signals(std::in_place);
    try {
      begin();
      signals->save_first();
      const int code = trainer_->run();
      if (ranks_.is_first()) write_end(code);
      signals.reset();
      trainer_->end(code == 0 ? RunStatus::finished : RunStatus::stopped);
      if (code != 0)
        log::info("stopped at step " + step_text() + "; resume with " + resume_command());
      return code;
    } catch (const std::exception&) {
      const std::string text = current_exception_text();
      const ExitCode code = current_exception_code();
      fail(text, code);
      throw Error(text, code);
    }
  }

 private:
  void begin() {
    run_together(*ranks_.control, [this] {
      if (ranks_.is_first()) write_first_files();
      for (const std::string& note : experiment_.notes) log::info(note);
      current_step.on_gpu = experiment_.train.device == "cuda";
      if (start_.resumed) require_device_of(experiment_, folder_.path());
    });
    training_ = std::make_unique<Training>(experiment_, plugins_, folder_, ranks_);
    const bool fresh = !start_.resumed || start_.branch || !resume();
    if (fresh) start();
    current_step.finished = training_->state.step;
    report_changes(start_.changes, *start_.stored, *training_);
    for (const Json& change : start_.changes)
      if (const std::string key = change["key"].get<std::string>(); !key.starts_with("tags."))
        training_->changes[key] = change["after"].get<std::string>();
    trainer_ =
        std::make_unique<Trainer>(*training_, start_.resumed, request_.quiet, request_.profile);
    run_together(*ranks_.control, [&] {
      if (!ranks_.is_first()) return;
      write_origin(fresh);
      check_trackers();
    });
    started_ = true;
  }

  /// Writes the settings before training, so that the run can be resumed without repeating its
  /// first command. With weights of another run, writes them only once the weights have been saved,
  /// because otherwise a resumed run would start from different weights.
  void write_first_files() const {
    const bool from_weights = !request_.from.empty() || start_.branch;
    if (!from_weights && !std::filesystem::exists(folder_.config()))
      fs::write_atomically(folder_.config(), experiment_.resolved.yaml());
    folder_.write_status("running", std::nullopt, 0, "");
  }

  void write_origin(bool fresh) const {
    if (fresh || !std::filesystem::exists(folder_.provenance())) {
      store_tokenizer(folder_, experiment_.tokenizer, plugins_);
      write_start(request_, folder_, experiment_, plugins_, *training_, start_);
    } else {
      write_resume(request_, folder_, experiment_, plugins_, *training_, start_.changes);
      if (!start_.changes.empty())
        fs::write_atomically(folder_.config(), experiment_.resolved.yaml());
    }
  }

  void check_trackers() {
    const auto inactive = [](const std::string& name, const std::string& reason) {
      log::info("tracker '" + name + "' is not used: " + reason);
    };
    training_->tracking.check(
        run_info(folder_.path(), experiment_, start_.resumed),
        make_trackers(experiment_, plugins_, folder_.path(), request_.tracker_settings, inactive));
  }

  /// Writes what is known only at the end. Call it before the trackers' end, because they may be
  /// slow or fail.
  void write_end(int code) const {
    Json origin = read_provenance(folder_.path());
    origin["data_hash"] = training_->state.data_hash;
    origin["validation_hash"] = training_->state.validation_hash;
    write_provenance(folder_, origin);
    folder_.write_status(code == 0 ? "finished" : stopped_state(code), code, training_->state.step,
                         "");
  }

  void start() {
    if (start_.branch)
      training_->branch_from(start_.branch->checkpoint);
    else if (!request_.from.empty())
      open_starting_model(request_.from, plugins_,
                          [&](const StoredModel& model) { training_->start_from(model); });
  }

  /// Restores the newest checkpoint. Returns false if there is none.
  bool resume() {
    const CheckpointStore checkpoints(folder_.checkpoints(), experiment_.checkpoint.keep_best);
    std::string visible;
    for (const StoredCheckpoint& stored : checkpoints.all())
      visible += stored.folder.filename().string() + " ";
    require_equal(*ranks_.control, {{folder_.checkpoints().string(), visible}});
    const auto newest = checkpoints.newest(*ranks_.control);
    if (!newest && !checkpoints.empty())
      throw Error("all checkpoints of run '" + folder_.name() +
                      "' are damaged (see the warnings), so it cannot resume. Restore one from a "
                      "copy, or remove " +
                      folder_.checkpoints().string() + " to restart the run at step 0",
                  ExitCode::checkpoint);
    if (!newest) {
      log::warning(
          "no checkpoint yet: the run starts again, with its settings and data as they are now");
      if (training_->metrics) training_->metrics->clear();
      training_->tracking.clear();
      return false;
    }
    compare_with_checkpoint(*newest, experiment_, plugins_);
    training_->restore(*newest);
    run_together(*ranks_.control, [this] {
      if (ranks_.is_first()) check_records();
    });
    return true;
  }

  /// Compares the checkpoint with the run's other files. Warns if some are lost.
  void check_records() const {
    const int64_t step = training_->state.step, recorded = training_->metrics->last_step();
    if (recorded > training_->steps)
      throw Error(c10::str(folder_.metrics().string(), " ends at step ", recorded,
                           ", but the run has only ", training_->steps,
                           " steps; remove the lines that do not belong to it"),
                  ExitCode::checkpoint);
    const bool has_origin = std::filesystem::exists(folder_.provenance());
    const Json origin = has_origin ? read_provenance(folder_.path()) : Json::object();
    if (!has_origin)
      log::warning(folder_.provenance().string() +
                   " is missing, so the record of how the run was started is lost");
    else if (origin.value("init_hash", "") != training_->state.init_hash)
      throw Error("the newest checkpoint of run '" + folder_.name() +
                      "' is of another run: it started from other weights than " +
                      folder_.provenance().string() + " says; remove it",
                  ExitCode::checkpoint);
    // A run that branched at this step has no metrics yet.
    if (origin.value("branched_from", Json::object()).value("step", int64_t{-1}) == step) return;
    if (recorded + start_.stored->train.log_every < step)
      log::warning(c10::str(folder_.metrics().string(), " ends at step ",
                            std::max<int64_t>(recorded, 0), ", but the checkpoint is of step ",
                            step, ": the metrics in between are lost"));
  }

  /// Records an error. If the run failed before its first step, removes its folder, so that the
  /// corrected command works.
  void fail(const std::string& text, ExitCode code) {
    try {
      if (folder_.created() && !started_) {
        close_log_file();
        if (folder_.exists()) folder_.remove();
        return;
      }
      log_to_file(log::Level::error, text);  // the program prints it on the terminal
      if (ranks_.is_first() && folder_.exists())
        folder_.write_status("failed", int(code), training_ ? training_->state.step : 0, text);
    } catch (const std::exception& error) {
      log::error(std::string("cannot write status.json: ") + error.what());
    }
    try {
      // An error of a callback or tracker must not replace the one that ended the run.
      if (trainer_) trainer_->end(RunStatus::failed);
    } catch (const std::exception& error) {
      log::error(error.what());
    }
  }

  std::string step_text() const { return std::to_string(training_->state.step); }

  /// Returns a command that works in the current folder.
  std::string resume_command() const {
    const std::filesystem::path parent = folder_.path().parent_path();
    const bool usual = std::filesystem::absolute(request_.usual_output).lexically_normal() ==
                       parent.lexically_normal();
    std::string flags;
    for (const std::string& word : request_.resume_flags) flags += " " + shell_quoted(word);
    return "dsv3-run --run_id " + folder_.name() +
           (usual ? "" : " --output " + shell_quoted(parent.string())) + flags;
  }

  const RunRequest& request_;
  RunFolder& folder_;
  const Ranks ranks_;
  const Experiment experiment_;
  Plugins& plugins_;
  const Start start_;
  std::unique_ptr<Training> training_;
  std::unique_ptr<Trainer> trainer_;
  bool started_ = false;
};

}  // namespace

void require_device_of(const Experiment& stored, const std::filesystem::path& run) {
  device_of(stored.train,
            {.alternative = "resume the run on a machine with a GPU or start a new run from its "
                            "weights with --from " +
                            std::filesystem::absolute(run).string() + " --device cpu"});
}

void open_starting_model(const std::string& from, Plugins& plugins,
                         const std::function<void(const StoredModel&)>& f) {
  try {
    f(open_stored_model(from, plugins));
  } catch (const Error& error) {
    const std::string text = error.what();
    throw Error("--from " + (text.starts_with(from) ? "" : from + ": ") + text, error.code());
  }
}

int run_session(const RunRequest& request, RunFolder& folder, Ranks ranks, Experiment experiment,
                Plugins& plugins, Start start) {
  return Session(request, folder, std::move(ranks), std::move(experiment), plugins,
                 std::move(start))
      .run();
}

}  // namespace dsv3
