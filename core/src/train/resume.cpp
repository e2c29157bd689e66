#include "train/resume.h"

#include <array>
#include <charconv>

#include <ATen/Version.h>
#include <torch/version.h>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>

#include "train/training.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// Settings, and sections of settings, that a resumed run may change.
constexpr std::array kChangeable{"checkpoint",
                                 "hub",
                                 "log",
                                 "model.loss.chunk",
                                 "model.recompute",
                                 "output",
                                 "samples",
                                 "strategy",
                                 "tags",
                                 "tracker",
                                 "train.device",
                                 "train.log_every",
                                 "train.max_skipped",
                                 "train.micro_batch",
                                 "train.ops",
                                 "train.threads",
                                 "train.trace_every",
                                 "validation.every"};

bool is_changeable(const std::string& key) {
  return std::ranges::any_of(kChangeable, [&](const std::string& path) {
    return key == path || key.starts_with(path + ".");
  });
}

bool is_length(const std::string& key) {
  return key == "train.steps" || key == "train.tokens";
}

/// Whether `key` is an option of a component that a resumed run may change: one that affects only
/// how a result is computed, or the path of an input file. The checkpoint's digests show whether
/// another path leads to the same content.
bool is_changeable_option(const std::string& key, const Experiment& experiment, Plugins& plugins) {
  for (const ComponentSpec* spec : experiment.components()) {
    if (spec->kind == Kind::strategy) continue;  // changeable as a whole, and perhaps `auto`
    for (const OptionSpec& option : plugins.find(*spec).schema->options)
      if ((option.input_path || option.execution) && spec->path + "." + option.key == key)
        return true;
  }
  return false;
}

std::string line_of(const Difference& difference) {
  const auto shown = [](const std::string& value) { return value.empty() ? "absent" : value; };
  return "\n  " + difference.key + ": " + shown(difference.a) + " in the run, " +
         shown(difference.b) + " now";
}

[[noreturn]] void reject_existing(const stdfs::path& run, const std::string& how,
                                  const std::string& flag) {
  throw Error("run '" + run.filename().string() + "' already exists, and was not " + how +
                  "; choose another --run_name, or remove " + flag + " to resume it",
              ExitCode::usage);
}

/// The folder of RUN in RUN[@STEP].
stdfs::path branch_folder(const std::string& branch, const stdfs::path& output) {
  const std::string run = branch.substr(0, branch.rfind('@'));
  return run.find('/') == run.npos ? output / run : stdfs::path(run);
}

void warn_if_changed(const Json& saved, const std::string& present, const char* what) {
  if (saved.is_string() && saved != present)
    log::warning(std::string(what) + " was " + saved.get<std::string>() +
                 " when the checkpoint was saved and is " + present +
                 " now, so the run may not continue bit-identically");
}

}  // namespace

Experiment experiment_of_run(const stdfs::path& run, Plugins& plugins,
                             const ExperimentRequest& changes,
                             const std::vector<std::string>& known_libraries) {
  ExperimentRequest request;
  request.file = run / "config.yaml";
  request.stored = true;
  request.known_libraries = known_libraries;
  for (const auto& [option, file] : stored_tokenizer(run))
    request.settings.push_back({"data.tokenizer." + option, file.string(), "run folder"});
  request.settings.insert(request.settings.end(), changes.settings.begin(), changes.settings.end());
  request.command_line = changes.command_line;
  try {
    return load_experiment(request, plugins);
  } catch (const Error& error) {
    throw Error(error.what() + plugin_advice(run), error.code());
  }
}

Json changes_of(const Experiment& stored, const Experiment& requested) {
  Json changes = Json::array();
  for (const Difference& difference : differences(stored.resolved, requested.resolved))
    changes.push_back({{"key", difference.key}, {"before", difference.a}, {"after", difference.b}});
  return changes;
}

Json accepted_changes(const stdfs::path& run, const Experiment& stored, const Experiment& requested,
                      Plugins& plugins) {
  const bool shorter = total_steps(requested) < total_steps(stored);
  std::string rejected;
  for (const Difference& difference : differences(stored.resolved, requested.resolved)) {
    const std::string& key = difference.key;
    if (is_length(key) ? shorter
                       : !is_changeable(key) && !is_changeable_option(key, requested, plugins))
      rejected += line_of(difference) + (is_length(key) ? " (a run can only become longer)" : "");
  }
  if (rejected.empty()) return changes_of(stored, requested);
  const std::string name = run.filename().string();
  throw Error("run '" + name + "' was started with other settings:" + rejected +
                  "\nResume it with its own settings (only --run_id " + name + " --output " +
                  shell_quoted(run.parent_path().string()) +
                  "), start a new run from its state with --branch " + shell_quoted(run.string()) +
                  ", or one from its weights with --from " + shell_quoted(run.string()),
              ExitCode::usage);
}

void compare_with_checkpoint(const StoredCheckpoint& checkpoint, const Experiment& experiment,
                             Plugins& plugins) {
  StoredModel stored = stored_model_of(checkpoint);
  for (const ComponentSpec* spec : experiment.components())
    if (!spec->library.empty()) stored.source.known_libraries.push_back(spec->library);
  Experiment saved = stored.load(plugins);
  resolve_machine_as(saved, experiment);
  accepted_changes(checkpoint.folder.parent_path().parent_path(), saved, experiment, plugins);
  const Json& state = checkpoint.manifest.at("state");
  const Json libraries = state.value("plugins", Json::object());
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    if (libraries.contains(library.name) && libraries[library.name] != library.sha256)
      log::warning("plugin '" + library.name + "' (" + library.path.string() +
                   ") has changed since the checkpoint was saved, so the run may not continue "
                   "bit-identically");
  const Json machine = state.value("machine", Json::object());
  warn_if_changed(machine.value("cpu_capability", Json()), at::get_cpu_capability(),
                  "the CPU capability");
  warn_if_changed(machine.value("libtorch", Json()), TORCH_VERSION, "the LibTorch version");
}

void require_branched_from(const stdfs::path& run, const std::string& branch,
                           const stdfs::path& output) {
  const Json source = read_provenance(run).value("branched_from", Json::object());
  const size_t at = branch.rfind('@');
  const std::string step = at == branch.npos ? "" : branch.substr(at + 1);
  const stdfs::path expected = stdfs::weakly_canonical(branch_folder(branch, output));
  if (stdfs::weakly_canonical(source.value("run", "")) != expected ||
      (!step.empty() && step != std::to_string(source.value("step", int64_t{-1}))))
    reject_existing(run, "branched from " + branch, "--branch");
}

void require_started_from(const stdfs::path& run, const stdfs::path& from) {
  const stdfs::path source = read_provenance(run).value("started_from", "");
  if (stdfs::weakly_canonical(source) != stdfs::weakly_canonical(from))
    reject_existing(run, "started from " + from.string(), "--from");
}

BranchPoint find_branch_point(const std::string& branch, const stdfs::path& output) {
  const size_t at = branch.rfind('@');
  const std::string run = branch.substr(0, at);
  const bool is_path = run.find('/') != run.npos;
  const stdfs::path folder = branch_folder(branch, output);
  std::error_code ignored;
  if (run.empty() || !stdfs::is_directory(folder, ignored))
    throw Error("--branch " + branch + ": run '" + run + "' not found" +
                    (is_path ? "" : " in " + output.string()) +
                    "; pass RUN or RUN@STEP, where RUN is the name or path of a run folder",
                ExitCode::usage);
  if (stdfs::exists(folder / "manifest.json", ignored))
    throw Error("--branch " + branch + ": this is a checkpoint, but a run is needed; pass RUN@STEP",
                ExitCode::usage);
  const CheckpointStore store(folder / "checkpoints", 0);
  if (at == branch.npos) {
    if (const auto newest = store.newest()) return {folder, *newest};
    store.fail_if_damaged();
    throw Error("--branch " + branch + ": the run has no checkpoint", ExitCode::usage);
  }
  int64_t step = -1;
  const char* end = branch.data() + branch.size();
  const auto [stop, error] = std::from_chars(branch.data() + at + 1, end, step);
  std::string steps;
  for (const StoredCheckpoint& stored : store.all()) {
    if (error == std::errc() && stop == end && stored.step == step)
      return {folder, verify_checkpoint(stored.folder)};
    steps += (steps.empty() ? "" : ", ") + std::to_string(stored.step);
  }
  throw Error("--branch " + branch + ": the run has no checkpoint of step '" +
                  branch.substr(at + 1) + "'; it has " + (steps.empty() ? "none" : steps) +
                  " (checkpoint.keep_best keeps more)",
              ExitCode::usage);
}

}  // namespace dsv3
