#include "download.h"

#include <utility>

#include <dsv3/support/fs.h>

#include "run.h"

namespace mlflow {
namespace {

namespace stdfs = std::filesystem;

int64_t step_in(const Json& object) {
  const auto step = object.find("step");
  return step != object.end() && step->is_number_integer() ? step->get<int64_t>() : 0;
}

/// The last part of a path that the server has sent. Throws BadAnswer unless it is the name of a
/// file.
std::string file_name(const std::string& path) {
  const std::string name = stdfs::path(path).filename().string();
  const bool is_name = !name.empty() && name != "." && name != ".." && name.size() < 256 &&
                       name.find('\0') == name.npos && name.find('\\') == name.npos;
  if (!is_name) throw BadAnswer("no name of a file");
  return name;
}

using Query = std::vector<std::pair<std::string, std::string>>;

/// The names of the files in a list of artifacts, of which servers send parts. Leaves out folders.
std::vector<std::string> list_files(Api& api, const std::string& endpoint, const Query& query) {
  std::vector<std::string> names;
  std::string page;
  do {
    Query next = query;
    if (!page.empty()) next.emplace_back("page_token", page);
    const Json list = api.get(endpoint, next);
    for (const Json& file : array_in(list, "files"))
      if (file.is_object() && file.value("is_dir", Json(false)) != Json(true))
        names.push_back(file_name(text_in(file, "path")));
    const std::string before = std::exchange(page, text_in(list, "next_page_token"));
    if (!page.empty() && page == before) throw BadAnswer("a list of files without an end");
  } while (!page.empty());
  return names;
}

/// The id of the model that was logged at the last step; "" if there is none.
std::string newest_model(const Json& run) {
  std::string newest;
  int64_t last = -1;
  const Json outputs = run.value("outputs", Json::object());
  for (const Json& model :
       array_in(outputs.is_object() ? outputs : Json::object(), "model_outputs"))
    if (const int64_t step = step_in(model); step > last) {
      newest = id_in(model, "model_id");
      last = step;
    }
  return newest;
}

void download_checkpoint(Api& api, const std::string& id, const stdfs::path& folder) {
  const std::string endpoint = "logged-models/" + id;
  const Json answer = api.get(endpoint);
  const Json& info = object_in(object_in(answer, "model"), "info");
  const std::string source =
      artifact_path(api.server(), text_in(info, "artifact_uri"), "models/" + id);
  if (source.empty()) throw BadAnswer("the model has no files that the server serves");
  const stdfs::path target = folder / "checkpoints" / file_name(text_in(info, "name"));
  dsv3::fs::make_folders(target);
  for (const std::string& file : list_files(api, endpoint + "/artifacts/directories", {}))
    api.get_file(source + "/" + file, target / file);
}

/// Downloads the files of one folder of the run's artifacts; "" = the outermost.
void download_files(Api& api, const RemoteRun& run, const std::string& part,
                    const stdfs::path& folder) {
  Query query{{"run_id", run.id}};
  if (!part.empty()) query.emplace_back("path", part);
  const std::vector<std::string> files = list_files(api, "artifacts/list", query);
  if (files.empty()) return;
  dsv3::fs::make_folders(folder / part);
  for (const std::string& file : files)
    api.get_file(run.artifacts + "/" + (part.empty() ? "" : part + "/") + file,
                 folder / part / file);
}

Json last_steps(const Json& run) {
  Json steps = Json::object();
  for (const Json& metric : array_in(object_in(run, "data"), "metrics"))
    steps[text_in(metric, "key")] = step_in(metric);
  return steps;
}

}  // namespace

std::string download_run(Api& api, const std::string& id, const stdfs::path& folder,
                         dsv3::TrackerStore& store) {
  Json answer;
  try {
    answer = api.get("runs/get", {{"run_id", id}});
  } catch (const ApiError& error) {
    if (error.code == "RESOURCE_DOES_NOT_EXIST") return "";
    throw;
  }
  const Json& run = object_in(answer, "run");
  const std::string model = newest_model(run);
  if (model.empty())
    throw dsv3::Error("MLflow run " + id +
                          " has no checkpoint, so it cannot be resumed without its folder; runs "
                          "upload checkpoints with tracker: {plugin: mlflow, checkpoints: last}",
                      dsv3::ExitCode::checkpoint);
  const RemoteRun remote = remote_run(api, answer, id);
  if (remote.artifacts.empty())
    throw dsv3::Error("the server does not serve the files of MLflow run " + id,
                      dsv3::ExitCode::checkpoint);
  for (const char* part : {"", "tokenizer", "samples"}) download_files(api, remote, part, folder);
  download_checkpoint(api, model, folder);
  store.set("received", last_steps(run).dump());
  return text_in(object_in(run, "info"), "run_name");
}

}  // namespace mlflow
