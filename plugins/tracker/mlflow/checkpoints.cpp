#include "checkpoints.h"

#include <algorithm>
#include <cmath>

#include "batch.h"

namespace mlflow {
namespace {

namespace stdfs = std::filesystem;
using dsv3::Record;

const dsv3::record::Checkpoint& checkpoint_in(const Record& record) {
  return std::get<dsv3::record::Checkpoint>(record.content);
}

std::string path_of(const Json& model) {
  const std::string uri = model.at("info").value("artifact_uri", "");
  const std::string path = artifact_path(uri);
  if (path.empty())
    throw dsv3::Error("the server does not serve the artifact store of logged models (" + uri +
                      ")");
  return path;
}

constexpr const char* kUploading = "uploading";  // path and model of an upload that has begun

/// Creates a model, or returns that of an earlier attempt to upload the same checkpoint.
Json open_model(const ModelUpload& upload, const Record& record) {
  const std::string path = checkpoint_in(record).path;
  if (const std::string begun = upload.store.get(kUploading); begun.starts_with(path + " "))
    return upload.api.get("logged-models/" + dsv3::http::escape(begun.substr(path.size() + 1)))
        .at("model");
  const Json model =
      upload.api
          .post("logged-models",
                {{"experiment_id", upload.run.experiment_id},
                 {"name", stdfs::path(checkpoint_in(record).path).filename().string()},
                 {"model_type", "dsv3 checkpoint"},
                 {"source_run_id", upload.run.id},
                 {"tags", {{{"key", "dsv3.step"}, {"value", std::to_string(record.step)}}}}})
          .at("model");
  upload.store.set(kUploading, path + " " + model.at("info").at("model_id").get<std::string>());
  return model;
}

void set_status(Api& api, const std::string& id, const char* status) {
  api.patch("logged-models/" + dsv3::http::escape(id), {{"model_id", id}, {"status", status}});
}

void put_files(Api& api, const std::string& target, const stdfs::path& folder) {
  std::vector<stdfs::path> files;
  for (const stdfs::directory_entry& entry : stdfs::directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path());
  // The manifest last: a folder without it is not a checkpoint.
  std::ranges::sort(files, {}, [](const stdfs::path& file) {
    return std::pair(file.filename() == "manifest.json", file.filename());
  });
  for (const stdfs::path& file : files) api.put_file(target + "/" + file.filename().string(), file);
}

void log_metrics(const ModelUpload& upload, const Record& record, const std::string& id) {
  std::vector<Entry> entries;
  for (const auto& [name, value] : checkpoint_in(record).metrics)
    entries.push_back({Entry::Kind::metric,
                       {{"key", name},
                        {"value", number(value)},
                        {"timestamp", int64_t(record.time * 1000)},
                        {"step", record.step},
                        {"model_id", id}}});
  log_batch(upload.api, upload.run.id, entries, [&](size_t, const std::string& reason) {
    upload.store.reject(record, "metrics of " + id, reason);
  });
}

void register_version(const ModelUpload& upload, const std::string& id) {
  if (upload.registered.empty()) return;
  try {
    upload.api.post("registered-models/create", {{"name", upload.registered}});
  } catch (const ApiError& error) {
    if (error.code != "RESOURCE_ALREADY_EXISTS") throw;
  }
  const Json version = upload.api
                           .post("model-versions/create", {{"name", upload.registered},
                                                           {"source", "models:/" + id},
                                                           {"run_id", upload.run.id},
                                                           {"model_id", id}})
                           .at("model_version");
  upload.api.post("registered-models/alias", {{"name", upload.registered},
                                              {"alias", upload.which == "best" ? "best" : "latest"},
                                              {"version", version.at("version")}});
}

double loss_of(const Record& record) {
  const auto& metrics = checkpoint_in(record).metrics;
  const auto loss = metrics.find("val/loss");
  return loss == metrics.end() ? NAN : loss->second;
}

}  // namespace

bool is_chosen(const std::string& which, const Record& checkpoint,
               const dsv3::TrackerStore& store) {
  if (which == "none") return false;
  if (which == "last") return true;
  const std::string best = store.get("best_loss");
  return best.empty() ? !std::isnan(loss_of(checkpoint)) : loss_of(checkpoint) < std::stod(best);
}

void upload_model(const ModelUpload& upload, const stdfs::path& folder, const Record& checkpoint) {
  const Json model = open_model(upload, checkpoint);
  const std::string id = model.at("info").at("model_id").get<std::string>();
  put_files(upload.api, path_of(model), folder);
  set_status(upload.api, id, "LOGGED_MODEL_READY");
  upload.api.post("runs/outputs", {{"run_id", upload.run.id},
                                   {"models", {{{"model_id", id}, {"step", checkpoint.step}}}}});
  log_metrics(upload, checkpoint, id);
  register_version(upload, id);
  upload.store.set(kUploading, "");
  upload.store.set("checkpoint", id);
  upload.store.set("checkpoint_step", std::to_string(checkpoint.step));
  if (upload.which == "best") upload.store.set("best_loss", Json(loss_of(checkpoint)).dump());
}

}  // namespace mlflow
