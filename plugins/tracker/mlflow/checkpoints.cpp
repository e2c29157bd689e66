#include "checkpoints.h"

#include <algorithm>
#include <cmath>

#include "batch.h"
#include "unity.h"

namespace mlflow {
namespace {

namespace stdfs = std::filesystem;
using dsv3::Record;

const dsv3::record::Checkpoint& checkpoint_in(const Record& record) {
  return std::get<dsv3::record::Checkpoint>(record.content);
}

struct LoggedModel {
  std::string id, artifacts;  // see RemoteRun
};

LoggedModel logged_model(const Api& api, const Json& answer) {
  const Json& info = object_in(object_in(answer, "model"), "info");
  const std::string id = id_in(info, "model_id");
  return {id, artifact_path(api.server(), text_in(info, "artifact_uri"), "models/" + id)};
}

constexpr const char* kRegistering = "registering";  // logged model and its version
constexpr const char* kUploading = "uploading";      // path and model of the last upload

/// Creates a model, or returns that of an earlier attempt to upload the same checkpoint.
LoggedModel open_model(const ModelUpload& upload, const Record& record) {
  const std::string path = checkpoint_in(record).path;
  if (const std::string begun = upload.store.get(kUploading); begun.starts_with(path + " "))
    return logged_model(
        upload.api,
        upload.api.get("logged-models/" + dsv3::http::escape(begun.substr(path.size() + 1))));
  const LoggedModel model = logged_model(
      upload.api,
      upload.api.post(
          "logged-models",
          {{"experiment_id", upload.run.experiment_id},
           {"name", stdfs::path(checkpoint_in(record).path).filename().string()},
           {"model_type", "dsv3 checkpoint"},
           {"source_run_id", upload.run.id},
           {"tags", {{{"key", "dsv3.step"}, {"value", std::to_string(record.step)}}}}}));
  upload.store.set(kUploading, path + " " + model.id);
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
  const dsv3::record::Checkpoint& checkpoint = checkpoint_in(record);
  std::vector<Entry> entries;
  for (const auto& [name, value] : checkpoint.metrics) {
    Json metric = {{"key", name},
                   {"value", number(value)},
                   {"timestamp", int64_t(record.time * 1000)},
                   {"step", record.step},
                   {"model_id", id}};
    if (!checkpoint.dataset.empty()) {
      metric["dataset_name"] = checkpoint.dataset;
      metric["dataset_digest"] = checkpoint.digest.substr(0, kLongestDigest);
    }
    entries.push_back({Entry::Kind::metric, std::move(metric)});
  }
  log_batch(upload.api, upload.run.id, entries, [&](size_t, const std::string& reason) {
    upload.store.reject(record, "metrics of " + id, reason);
  });
}

void register_version(const ModelUpload& upload, const std::string& id, const stdfs::path& folder) {
  if (upload.registered.empty()) return;
  if (upload.api.server().is_databricks) return register_unity_version(upload, id, folder);
  const std::string version = new_version(upload, id, "");
  upload.api.post("registered-models/alias", {{"name", upload.registered},
                                              {"alias", upload.which == "best" ? "best" : "last"},
                                              {"version", version}});
}

/// Whether an earlier attempt has made the model an output of the run. MLflow rejects a second one.
bool is_output(const ModelUpload& upload, const std::string& id) {
  const Json answer = upload.api.get("runs/get", {{"run_id", upload.run.id}});
  const Json& run = object_in(answer, "run");
  if (!run.contains("outputs")) return false;
  return std::ranges::any_of(array_in(object_in(run, "outputs"), "model_outputs"),
                             [&](const Json& model) { return text_in(model, "model_id") == id; });
}

double loss_of(const Record& record) {
  const auto& metrics = checkpoint_in(record).metrics;
  const auto loss = metrics.find("val/loss");
  return loss == metrics.end() ? NAN : loss->second;
}

}  // namespace

std::string new_version(const ModelUpload& upload, const std::string& id,
                        const std::string& registry) {
  if (const std::string begun = upload.store.get(kRegistering); begun.starts_with(id + " "))
    return begun.substr(id.size() + 1);
  try {
    upload.api.post(registry + "registered-models/create", {{"name", upload.registered}});
  } catch (const ApiError& error) {
    if (error.code != "RESOURCE_ALREADY_EXISTS" && error.status != 409) throw;
  }
  const Json answer =
      upload.api.post(registry + "model-versions/create", {{"name", upload.registered},
                                                           {"source", "models:/" + id},
                                                           {"run_id", upload.run.id},
                                                           {"model_id", id}});
  const std::string version = id_in(object_in(answer, "model_version"), "version");
  upload.store.set(kRegistering, id + " " + version);
  return version;
}

bool is_chosen(const std::string& which, const Record& checkpoint,
               const dsv3::TrackerStore& store) {
  if (which == "none") return false;
  if (which == "last") return true;
  const std::string best = store.get("best_loss");
  return best.empty() ? !std::isnan(loss_of(checkpoint)) : loss_of(checkpoint) < std::stod(best);
}

void upload_model(const ModelUpload& upload, const stdfs::path& folder, const Record& checkpoint) {
  const auto [id, target] = open_model(upload, checkpoint);
  if (target.empty()) {
    upload.store.reject(checkpoint, checkpoint_in(checkpoint).path,
                        "the server does not serve the artifact store of logged models; start it "
                        "with --serve-artifacts");
    return;
  }
  put_files(upload.api, target, folder);
  set_status(upload.api, id, "LOGGED_MODEL_READY");
  if (!is_output(upload, id))
    upload.api.post("runs/outputs", {{"run_id", upload.run.id},
                                     {"models", {{{"model_id", id}, {"step", checkpoint.step}}}}});
  log_metrics(upload, checkpoint, id);
  register_version(upload, id, folder);
  upload.store.set("checkpoint", id);
  upload.store.set("checkpoint_step", std::to_string(checkpoint.step));
  if (upload.which == "best") upload.store.set("best_loss", Json(loss_of(checkpoint)).dump());
}

}  // namespace mlflow
