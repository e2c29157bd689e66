#include "download.h"

#include <algorithm>

#include <dsv3/support/fs.h>

#include "run.h"

namespace mlflow {
namespace {

namespace stdfs = std::filesystem;

/// Throws unless `name`, which the server has sent, is the name of a file.
const std::string& checked_name(const std::string& name) {
  const bool is_name = !name.empty() && name != "." && name != ".." && name.size() < 256 &&
                       name.find_first_of(std::string("/\\\0", 3)) == name.npos;
  if (!is_name) throw dsv3::Error("the server sent the name of a file that is not one");
  return name;
}

/// The names of the files that a list of the server names, without folders.
std::vector<std::string> files_in(const Json& list) {
  std::vector<std::string> names;
  for (const Json& file : list.value("files", Json::array()))
    if (!file.value("is_dir", false))
      names.push_back(
          checked_name(stdfs::path(file.at("path").get<std::string>()).filename().string()));
  return names;
}

/// The model that was logged at the last step; null if there is none.
Json newest_model(const Json& run) {
  Json newest;
  const Json outputs = run.value("outputs", Json::object());
  for (const Json& model : outputs.value("model_outputs", Json::array()))
    if (newest.is_null() || model.value("step", int64_t{0}) > newest.value("step", int64_t{0}))
      newest = model;
  return newest;
}

void download_checkpoint(Api& api, const std::string& id, const stdfs::path& folder) {
  const std::string endpoint = "logged-models/" + dsv3::http::escape(id);
  const Json model = api.get(endpoint).at("model");
  const std::string name = checked_name(model.at("info").at("name").get<std::string>());
  const std::string source = artifact_path(model.at("info").value("artifact_uri", ""));
  const stdfs::path target = folder / "checkpoints" / name;
  dsv3::fs::make_folders(target);
  for (const std::string& file : files_in(api.get(endpoint + "/artifacts/directories")))
    api.get_file(source + "/" + file, target / file);
}

/// Downloads the files of one folder of the run's artifacts; "" = the outermost.
void download_files(Api& api, const RemoteRun& run, const std::string& part,
                    const stdfs::path& folder) {
  const Json list = api.get("artifacts/list", {{"run_id", run.id}, {"path", part}});
  const std::vector<std::string> files = files_in(list);
  if (files.empty()) return;
  dsv3::fs::make_folders(folder / part);
  for (const std::string& file : files)
    api.get_file(run.artifacts + "/" + (part.empty() ? "" : part + "/") + file,
                 folder / part / file);
}

Json last_steps(const Json& run) {
  Json steps = Json::object();
  for (const Json& metric : run.at("data").value("metrics", Json::array()))
    steps[metric.at("key").get<std::string>()] = metric.value("step", int64_t{0});
  return steps;
}

}  // namespace

std::string download_run(Api& api, const std::string& id, const stdfs::path& folder,
                         dsv3::TrackerStore& store) {
  Json run;
  try {
    run = api.get("runs/get", {{"run_id", id}}).at("run");
  } catch (const ApiError& error) {
    if (error.code == "RESOURCE_DOES_NOT_EXIST") return "";
    throw;
  }
  const Json model = newest_model(run);
  if (model.is_null())
    throw dsv3::Error("MLflow run " + id +
                          " has no checkpoint, so it cannot be resumed without its folder; runs "
                          "upload checkpoints with tracker: {plugin: mlflow, checkpoints: last}",
                      dsv3::ExitCode::checkpoint);
  const RemoteRun remote = remote_run(run);
  for (const char* part : {"", "tokenizer", "samples"}) download_files(api, remote, part, folder);
  download_checkpoint(api, model.at("model_id").get<std::string>(), folder);
  store.set("received", last_steps(run).dump());
  return run.at("info").value("run_name", id);
}

}  // namespace mlflow
