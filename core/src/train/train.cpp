// Starts and resumes runs: turns a request into a run folder and its settings, alike on all ranks.
#include <set>

#include <torch/version.h>

#include <dsv3/runtime/launch.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>
#include <dsv3/sdk/version.h>
#include <dsv3/support/sha256.h>

#include "ranks/exchange.h"
#include "support/checked_math.h"
#include "train/auto_strategy.h"
#include "train/session.h"
#include "train/training.h"

namespace dsv3 {
namespace {

/// Libraries that the user's own experiment names.
std::vector<std::string> libraries_named_by(const std::optional<Experiment>& experiment) {
  std::vector<std::string> libraries;
  if (!experiment) return libraries;
  for (const ComponentSpec* spec : experiment->components())
    if (!spec->library.empty()) libraries.push_back(spec->library);
  return libraries;
}

/// Compares the new run with the one that it branches from.
void compare_with_branch(Start& start, const Experiment& experiment, Plugins& plugins) {
  const std::string run = start.branch->run.string();
  try {
    Experiment source = experiment_of_run(run, plugins, {}, libraries_named_by(experiment));
    resolve_machine_as(source, experiment);
    start.changes = changes_of(source, experiment);
    start.stored = std::move(source);
  } catch (const Error& error) {
    log::warning("cannot compare the settings with those of " + run + ": " + error.what());
  }
  for (const Json& change : start.changes)
    if (change["key"] == "validation.share")
      log::warning("validation.share differs from that of " + run +
                   ", so documents that it was trained on may be in the validation split");
}

}  // namespace

Experiment check(const RunRequest& request, Plugins& plugins, PreflightScope scope) {
  Experiment experiment = load_experiment(request.experiment, plugins);
  const std::filesystem::path output =
      request.output.empty() ? std::filesystem::path(experiment.output) : request.output;
  const std::string& name = request.run_id.empty() ? request.run_name : request.run_id;
  const std::filesystem::path config = output / name / "config.yaml";
  if (!name.empty() && (request.resume_auto || !request.run_id.empty()) && exists(config)) {
    Experiment stored =
        experiment_of_run(output / name, plugins, {}, libraries_named_by(experiment));
    resolve_machine(stored);
    resolve_machine_as(experiment, stored);
    accepted_changes(absolute(output / name), stored, experiment, plugins);
    if (scope == PreflightScope::everything) require_device_of(experiment, output / name);
  } else if (!request.run_name.empty() && !request.resume_auto) {
    RunFolder::require_new(output, request.run_name);
  }
  preflight(experiment, plugins, scope, request.ranks.world);
  if (!request.from.empty() && scope == PreflightScope::everything)
    open_starting_model(request.from, plugins, [](const StoredModel&) {});
  return experiment;
}

namespace {

/// What a request leads to, before anything is written.
struct Plan {
  std::optional<Experiment> experiment;  ///< empty = that of the run to be resumed
  std::filesystem::path output;
  std::string run_id;       ///< name of the run to be resumed; empty = none is named
  bool has_config = false;  ///< the run exists, with its settings
  Start start;
};

/// The name of the run that `--run_id` means: a run folder, or one to which a tracker has given
/// this id.
std::string existing_run(const std::filesystem::path& output, const std::string& run_id) {
  if (run_id.empty() || std::filesystem::exists(output / run_id)) return run_id;
  const std::string name = run_with_tracker_id(output, run_id);
  return name.empty() ? run_id : name;
}

Plan plan_of(const RunRequest& request, Plugins& plugins) {
  Plan plan;
  std::optional<Experiment>& experiment = plan.experiment;
  plan.output = request.output;
  if (!request.experiment.file.empty()) experiment = load_experiment(request.experiment, plugins);
  if (plan.output.empty()) plan.output = experiment ? experiment->output : request.usual_output;
  plan.run_id = existing_run(plan.output, request.run_id);
  const std::filesystem::path existing =
      plan.output / (plan.run_id.empty() ? request.run_name : plan.run_id);
  plan.start.resumed =
      !request.run_id.empty() || (request.resume_auto && std::filesystem::exists(existing));
  plan.has_config = plan.start.resumed && std::filesystem::exists(existing / "config.yaml");
  if (!request.branch.empty() && plan.has_config)
    require_branched_from(existing, request.branch, plan.output);
  if (!request.from.empty() && plan.has_config) require_started_from(existing, request.from);
  if (!request.branch.empty() && !plan.has_config) {
    plan.start.branch = find_branch_point(request.branch, plan.output);
    if (!experiment)
      experiment = experiment_of_run(plan.start.branch->run, plugins, request.experiment);
  }
  if (experiment && !request.quiet) set_log_level(experiment->log_level);
  if (!plan.start.resumed) {
    resolve_machine(*experiment, request.ranks.local_world);
    preflight(*experiment, plugins, PreflightScope::everything, request.ranks.world);
  }
  return plan;
}

/// Opens or creates the run folder on the first rank.
RunFolder open_folder(const RunRequest& request, const Plan& plan, const Ranks& ranks) {
  std::optional<RunFolder> folder;
  run_together(*ranks.control, [&] {
    if (!ranks.is_first()) return;
    if (!request.run_id.empty())
      folder.emplace(RunFolder::open(plan.output, plan.run_id));
    else if (request.resume_auto)
      folder.emplace(RunFolder::open_or_create(plan.output, request.run_name));
    else
      folder.emplace(RunFolder::create(plan.output, request.run_name, plan.experiment->name));
  });
  const std::string path = broadcast_text(*ranks.control, folder ? folder->path().string() : "");
  run_together(*ranks.control, [&] {
    if (!folder) folder.emplace(RunFolder::join(path));
  });
  return std::move(*folder);
}

/// Returns `stored`, the settings of the run in `folder`. If the run had another number of ranks,
/// the cores are divided anew, unless the user sets train.threads in `experiment`.
Experiment with_threads(Experiment stored, Experiment& experiment, const RunFolder& folder,
                        const RankContext& ranks) {
  const Json origin = read_provenance(folder.path());
  const Json resumes = origin.value("resumes", Json::array());
  const Json& last = resumes.empty() ? origin : resumes.back();
  if (last.value("ranks", int64_t{1}) == ranks.world) return stored;
  if (experiment.origin("train.threads").source == folder.config().string())
    experiment.train.threads.reset();
  stored.train.threads.reset();
  resolve_machine(stored, ranks.local_world);
  return stored;
}

/// Loads the settings of the run in `folder` if it has any, and compares them with the request.
void complete(Plan& plan, const RunRequest& request, const RunFolder& folder, Plugins& plugins) {
  std::optional<Experiment>& experiment = plan.experiment;
  if (plan.has_config) {
    Experiment stored =
        experiment_of_run(folder.path(), plugins, {}, libraries_named_by(experiment));
    resolve_machine(stored, request.ranks.local_world);
    if (!experiment) experiment = experiment_of_run(folder.path(), plugins, request.experiment);
    resolve_machine_as(*experiment, with_threads(stored, *experiment, folder, request.ranks));
    plan.start.changes = accepted_changes(folder.path(), stored, *experiment, plugins);
    plan.start.stored = std::move(stored);
    if (!request.quiet) set_log_level(experiment->log_level);
  } else if (!request.run_id.empty()) {
    throw Error("run '" + folder.name() +
                    "' was stopped before its settings were written: repeat its first command "
                    "with --run_name " +
                    folder.name() + " --resume auto",
                ExitCode::usage);
  } else {
    resolve_machine(*experiment, request.ranks.local_world);
  }
  if (plan.start.branch) compare_with_branch(plan.start, *experiment, plugins);
  if (!plan.start.stored) plan.start.stored = *experiment;
}

/// The flags that all ranks must have.
Facts facts_of(const RunRequest& request) {
  return {{"--run_name", request.run_name},
          {"--run_id", request.run_id},
          {"--resume", request.resume_auto ? "auto" : ""},
          {"--from", request.from.string()},
          {"--branch", request.branch},
          {"--output", request.output.string()},
          {"--profile", request.profile ? "set" : ""}};
}

/// What all ranks must have read alike.
Facts facts_of(const Experiment& experiment, const Plugins& plugins) {
  Facts facts{{"dsv3", DSV3_SDK_VERSION}, {"libtorch", TORCH_VERSION}};
  for (ResolvedValue value : experiment.resolved.values) {
    if (value.path == "train.threads") continue;
    std::string text = value.yaml();
    value.written.clear();
    // The value of an environment variable must not be printed.
    if (text.find("${") != text.npos) text += " (" + sha256(value.yaml()).substr(0, 8) + ")";
    facts[value.path] = text;
  }
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    facts["plugin " + library.name] = library.sha256;
  return facts;
}

/// Connects the ranks, also if this one has failed, to tell the others.
Ranks connect(const RankContext& context, const std::optional<Plan>& plan,
              const std::exception_ptr& failure) {
  constexpr double kUnknown = 600;  // the run's settings are not known yet
  constexpr double kFailed = 20;    // the others have most likely failed, too, and do not come
  if (plan) return connect(context, plan->experiment ? plan->experiment->timeout : kUnknown);
  try {
    return connect(context, kFailed);
  } catch (const Error&) {
    std::rethrow_exception(failure);
  }
}

int train(Plan plan, const RunRequest& request, const Ranks& ranks, Plugins& plugins) {
  if (plan.experiment) choose_strategy(*plan.experiment, plugins, ranks, request.ranks.local_world);
  // A new run must not create its folder if the ranks disagree.
  if (!plan.start.resumed) require_equal(*ranks.control, facts_of(*plan.experiment, plugins));
  RunFolder folder = open_folder(request, plan, ranks);
  announce_run(folder.path());
  run_together(*ranks.control, [&] { complete(plan, request, folder, plugins); });
  if (plan.start.resumed) require_equal(*ranks.control, facts_of(*plan.experiment, plugins));
  return run_session(request, folder, ranks, *std::move(plan.experiment), plugins,
                     std::move(plan.start));
}

}  // namespace

int train(const RunRequest& request, Plugins& plugins) {
  std::optional<Plan> plan;
  std::exception_ptr failure;  // reported together with the other ranks' errors
  try {
    plan = plan_of(request, plugins);
  } catch (...) {
    failure = std::current_exception();
  }
  const Ranks ranks = connect(request.ranks, plan, failure);
  try {
    require_equal(*ranks.control, facts_of(request));
    run_together(*ranks.control, [&] {
      if (failure) std::rethrow_exception(failure);
    });
    return train(*std::move(plan), request, ranks, plugins);
  } catch (...) {
    publish_failure(ranks);
    throw;
  }
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
  const std::optional<int64_t> per_step = checked_product({train.batch, train.sequence});
  if (!per_step)
    throw Error(c10::str("train.batch ", train.batch, " x train.sequence ", train.sequence,
                         " tokens per step are too many; reduce them"),
                ExitCode::usage);
  const int64_t tokens = train.tokens.value();
  return tokens / *per_step + (tokens % *per_step != 0);
}

}  // namespace dsv3
