#include "run.h"

#include <algorithm>
#include <pwd.h>
#include <unistd.h>

#include "databricks.h"

namespace mlflow {
namespace {

constexpr const char* kUid = "dsv3.run_uid";

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
    return object_in(api.get("experiments/get-by-name", {{"experiment_name", name}}), "experiment");
  } catch (const ApiError& error) {
    if (is_code(error, "RESOURCE_DOES_NOT_EXIST")) return std::nullopt;
    throw;
  }
}

bool is_active(const Json& entity) {
  return text_in(entity, "lifecycle_stage") != "deleted";
}

std::string id_of(const Json& experiment, const std::string& shown) {
  if (is_active(experiment)) return id_in(experiment, "experiment_id");
  throw dsv3::Error(
      "MLflow experiment " + shown + " was deleted; restore it in MLflow, or choose another name",
      dsv3::ExitCode::usage);
}

std::string quoted(const std::string& text) {
  return "'" + text + "'";
}

bool has_uid(const Json& run, const std::string& uid) {
  return std::ranges::any_of(array_in(object_in(run, "data"), "tags"), [&](const Json& tag) {
    return text_in(tag, "key") == kUid && text_in(tag, "value") == uid;
  });
}

/// Finds a run by its tag. Returns its entry.
std::optional<Json> find_by_uid(Api& api, const std::string& experiment, const std::string& uid) {
  const Json found =
      api.post("runs/search", {{"experiment_ids", {experiment}},
                               {"filter", "tags.`" + std::string(kUid) + "` = " + quoted(uid)},
                               {"run_view_type", "ALL"},
                               {"max_results", 1}});
  const Json runs = array_in(found, "runs");
  if (runs.empty()) return std::nullopt;
  if (!has_uid(runs.at(0), uid)) throw BadAnswer("it is about another run");
  return runs.at(0);
}

/// The id of the run from which this one was branched; "" if the experiment does not have it.
std::string branch_parent(Api& api, const std::string& experiment, const dsv3::RunInfo& info) {
  if (!info.branched_from || info.branched_from->uid.empty()) return "";
  const auto source = find_by_uid(api, experiment, info.branched_from->uid);
  return source && is_active(object_in(*source, "info"))
             ? id_in(object_in(*source, "info"), "run_id")
             : "";
}

int64_t milliseconds(double seconds) {
  return int64_t(seconds * 1000);
}

}  // namespace

std::string artifact_path(const Server& server, const std::string& uri,
                          const std::string& signed_path) {
  if (!server.is_databricks) return artifact_path(uri);
  return uri.starts_with("dbfs:/databricks/mlflow-") ? signed_path : "";
}

RemoteRun remote_run(const Api& api, const Json& answer, const std::string& expected) {
  const Json& info = object_in(object_in(answer, "run"), "info");
  RemoteRun remote{id_in(info, "run_id"), id_in(info, "experiment_id"), ""};
  if (!expected.empty() && remote.id != expected) throw BadAnswer("it is about another run");
  if (!is_active(info))
    throw dsv3::Error("run " + remote.id + " was deleted in MLflow; restore it there");
  remote.artifacts =
      artifact_path(api.server(), text_in(info, "artifact_uri"), "runs/" + remote.id);
  return remote;
}

std::string find_experiment(Api& api, const ExperimentChoice& choice, bool create) {
  if (!choice.id.empty()) {
    try {
      return id_of(
          object_in(api.get("experiments/get", {{"experiment_id", choice.id}}), "experiment"),
          choice.id);
    } catch (const ApiError& error) {
      if (error.status != 404 && error.status != 400) throw;
      throw dsv3::Error("MLflow experiment with id '" + choice.id + "' not found on " +
                            api.server().url + "; correct MLFLOW_EXPERIMENT_ID",
                        dsv3::ExitCode::usage);
    }
  }
  const bool is_databricks = api.server().is_databricks;
  const std::string name = is_databricks ? experiment_path(api, choice.name) : choice.name;
  if (const auto experiment = experiment_by_name(api, name))
    return id_of(*experiment, quoted(name));
  if (!create) {
    if (is_databricks) require_folder(api, name);
    return "";
  }
  try {
    return id_in(api.post("experiments/create", {{"name", name}}), "experiment_id");
  } catch (const ApiError& error) {
    // Another process may have created it since.
    if (!is_code(error, "RESOURCE_ALREADY_EXISTS")) throw;
  }
  if (const auto experiment = experiment_by_name(api, name))
    return id_of(*experiment, quoted(name));
  throw BadAnswer("an experiment exists, but has no entry");
}

Json tags_of(const dsv3::RunInfo& info, const std::string& parent) {
  std::map<std::string, std::string> tags{{kUid, info.uid},
                                          {"dsv3.run_folder", info.folder},
                                          {"mlflow.user", user()},
                                          {"mlflow.source.type", "LOCAL"},
                                          {"mlflow.source.name", info.source}};
  if (!parent.empty()) tags["mlflow.parentRunId"] = parent;
  if (const auto& source = info.branched_from)
    tags["dsv3.branched_from"] = source->name + "@" + std::to_string(source->step);
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
  if (!known_id.empty())
    return remote_run(api, api.get("runs/get", {{"run_id", known_id}}), known_id);
  const std::string experiment = find_experiment(api, choice, /*create=*/true);
  // The answer to the request that created it may have been lost.
  if (const auto run = find_by_uid(api, experiment, info.uid))
    return remote_run(api, {{"run", *run}});
  const std::string above = parent.empty() ? branch_parent(api, experiment, info) : parent;
  return remote_run(api, api.post("runs/create", {{"experiment_id", experiment},
                                                  {"run_name", info.name},
                                                  {"start_time", milliseconds(info.start_time)},
                                                  {"tags", tags_of(info, above)}}));
}

}  // namespace mlflow
