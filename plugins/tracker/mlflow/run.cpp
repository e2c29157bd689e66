#include "run.h"

#include <algorithm>
#include <cstdlib>
#include <pwd.h>
#include <unistd.h>

#include <dsv3/sdk/log.h>

namespace mlflow {
namespace {

constexpr const char* kUid = "dsv3.run_uid";
constexpr const char* kArtifacts = "mlflow-artifacts:";

std::string user() {
  const passwd* const entry = ::getpwuid(::getuid());
  return entry ? entry->pw_name : std::to_string(::getuid());
}

bool is_code(const ApiError& error, const char* code) {
  return error.code == code;
}

/// Returns nullopt if there is none of this name.
std::optional<Json> experiment_by_name(Api& api, const std::string& name) {
  try {
    return api.get("experiments/get-by-name", {{"experiment_name", name}}).at("experiment");
  } catch (const ApiError& error) {
    if (is_code(error, "RESOURCE_DOES_NOT_EXIST")) return std::nullopt;
    throw;
  }
}

std::string id_of(const Json& experiment, const std::string& shown) {
  if (experiment.value("lifecycle_stage", "active") == "active")
    return experiment.at("experiment_id").get<std::string>();
  throw dsv3::Error(
      "MLflow experiment " + shown + " was deleted; restore it in MLflow, or choose another name",
      dsv3::ExitCode::usage);
}

std::string quoted(const std::string& text) {
  return "'" + text + "'";
}

/// Finds the run by its tag: the answer to the request that created it may have been lost.
std::optional<Json> run_by_uid(Api& api, const std::string& experiment, const std::string& uid) {
  const Json found =
      api.post("runs/search", {{"experiment_ids", {experiment}},
                               {"filter", "tags.`" + std::string(kUid) + "` = " + quoted(uid)},
                               {"run_view_type", "ALL"},
                               {"max_results", 1}});
  if (!found.contains("runs") || found.at("runs").empty()) return std::nullopt;
  return found.at("runs").at(0);
}

void require_active(const Json& run) {
  const Json& info = run.at("info");
  if (info.value("lifecycle_stage", "active") != "active")
    throw dsv3::Error("run " + info.at("run_id").get<std::string>() +
                      " was deleted in MLflow; restore it there");
}

int64_t milliseconds(double seconds) {
  return int64_t(seconds * 1000);
}

}  // namespace

std::string artifact_path(std::string uri) {
  if (!uri.starts_with(kArtifacts)) return "";
  uri.erase(0, std::string(kArtifacts).size());
  if (uri.starts_with("//")) uri.erase(0, std::min(uri.find('/', 2), uri.size()));
  while (uri.starts_with('/')) uri.erase(0, 1);
  const std::filesystem::path path(uri);
  return std::ranges::count(path, std::filesystem::path("..")) ? "" : uri;
}

RemoteRun remote_run(const Json& run) {
  const Json& info = run.at("info");
  RemoteRun remote{info.at("run_id").get<std::string>(),
                   info.at("experiment_id").get<std::string>(),
                   artifact_path(info.value("artifact_uri", ""))};
  if (remote.artifacts.empty())
    dsv3::log::warning(
        "files are not uploaded to MLflow, because the server does not serve its "
        "artifact store (" +
        info.value("artifact_uri", "") + "); start it with --serve-artifacts");
  return remote;
}

std::string find_experiment(Api& api, const ExperimentChoice& choice, bool create) {
  if (!choice.id.empty()) {
    try {
      return id_of(api.get("experiments/get", {{"experiment_id", choice.id}}).at("experiment"),
                   choice.id);
    } catch (const ApiError& error) {
      if (error.status != 404 && error.status != 400) throw;
      throw dsv3::Error("MLflow experiment with id '" + choice.id + "' not found on " +
                            api.server().url + "; correct MLFLOW_EXPERIMENT_ID",
                        dsv3::ExitCode::usage);
    }
  }
  if (const auto experiment = experiment_by_name(api, choice.name))
    return id_of(*experiment, quoted(choice.name));
  if (!create) return "";
  try {
    return api.post("experiments/create", {{"name", choice.name}})
        .at("experiment_id")
        .get<std::string>();
  } catch (const ApiError& error) {
    // Another process may have created it since.
    if (!is_code(error, "RESOURCE_ALREADY_EXISTS")) throw;
  }
  return id_of(experiment_by_name(api, choice.name).value(), quoted(choice.name));
}

Json tags_of(const dsv3::RunInfo& info, const std::string& parent) {
  std::map<std::string, std::string> tags{{kUid, info.uid},
                                          {"dsv3.run_folder", info.folder},
                                          {"mlflow.user", user()},
                                          {"mlflow.source.type", "LOCAL"},
                                          {"mlflow.source.name", info.source}};
  if (!parent.empty()) tags["mlflow.parentRunId"] = parent;
  if (info.git) {
    tags["mlflow.source.git.commit"] = info.git->commit;
    tags["mlflow.source.git.branch"] = info.git->branch;
    tags["mlflow.source.git.repoURL"] = info.git->remote;
    tags["mlflow.source.git.dirty"] = info.git->dirty ? "true" : "false";
  }
  Json list = Json::array();
  for (const auto& [key, value] : tags)
    if (!value.empty()) list.push_back({{"key", key}, {"value", value}});
  return list;
}

RemoteRun open_run(Api& api, const dsv3::RunInfo& info, const ExperimentChoice& choice,
                   const std::string& parent, const std::string& known_id) {
  if (!known_id.empty()) {
    const Json run = api.get("runs/get", {{"run_id", known_id}}).at("run");
    require_active(run);
    return remote_run(run);
  }
  const std::string experiment = find_experiment(api, choice, /*create=*/true);
  if (const auto run = run_by_uid(api, experiment, info.uid)) {
    require_active(*run);
    return remote_run(*run);
  }
  return remote_run(api.post("runs/create", {{"experiment_id", experiment},
                                             {"run_name", info.name},
                                             {"start_time", milliseconds(info.start_time)},
                                             {"tags", tags_of(info, parent)}})
                        .at("run"));
}

}  // namespace mlflow
