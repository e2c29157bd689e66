#include "unity.h"

#include <algorithm>

#include "signed.h"

namespace mlflow {
namespace {

namespace stdfs = std::filesystem;
namespace http = dsv3::http;

/// Unity Catalog's clients accept only models with a signature: tokens [batch, position] in, logits
/// [batch, position, vocabulary] out.
std::string mlmodel(const ModelUpload& upload, const std::string& id) {
  const auto tensor = [](const char* type, const Json& shape) {
    const Json spec = {{"type", "tensor"}, {"tensor-spec", {{"dtype", type}, {"shape", shape}}}};
    return Json::array({spec}).dump();
  };
  const Json content = {{"model_id", id},
                        {"run_id", upload.run.id},
                        {"flavors", {{"dsv3", {{"format", "checkpoint"}}}}},
                        {"signature",
                         {{"inputs", tensor("int64", {-1, -1})},
                          {"outputs", tensor("float32", {-1, -1, -1})},
                          {"params", nullptr}}}};
  return content.dump(1) + "\n";  // JSON is YAML
}

bool has_default_storage(const ModelUpload& upload, const std::string& version) {
  const Json answer = upload.api.post("unity-catalog/model-versions/generate-temporary-credentials",
                                      {{"name", upload.registered},
                                       {"version", version},
                                       {"operation", "MODEL_VERSION_OPERATION_READ_WRITE"}});
  return text_in(object_in(answer, "credentials"), "storage_mode") == "DEFAULT_STORAGE";
}

}  // namespace

std::string unity_name(const std::string& model, const std::string& catalog) {
  const auto dots = [](const std::string& text) { return std::ranges::count(text, '.'); };
  const std::string name = dots(model) < 2 && !catalog.empty() ? catalog + "." + model : model;
  const bool is_plain = std::ranges::all_of(name, [](unsigned char c) {
    return c < 0x80 && (std::isalnum(c) || c == '_' || c == '-' || c == '.');
  });
  if (dots(name) != 2 || !is_plain || ("." + name + ".").find("..") != std::string::npos)
    throw dsv3::Error("registered model '" + name +
                          "' is not a name in Unity Catalog; set option 'model' to "
                          "CATALOG.SCHEMA.MODEL, or DATABRICKS_UNITY_CATALOG to CATALOG.SCHEMA",
                      dsv3::ExitCode::usage);
  return name;
}

void register_unity_version(const ModelUpload& upload, const std::string& id,
                            const stdfs::path& folder) {
  const std::string version = new_version(upload, id, "unity-catalog/");
  std::string target = "/Models/" + upload.registered + "/" + version + "/";
  std::replace(target.begin(), target.end() - std::ptrdiff_t(version.size() + 1), '.', '/');
  const bool is_signed = has_default_storage(upload, version);
  const auto put = [&](http::Request request, const std::string& name) {
    if (is_signed)
      put_presigned(upload.api, std::move(request), target + name);
    else
      upload.api.put_path(std::move(request), "/api/2.0/fs/files" + target + http::escape(name));
  };
  for (const stdfs::directory_entry& entry : stdfs::directory_iterator(folder)) {
    http::Request request;
    request.body_file = entry.path();
    if (entry.is_regular_file()) put(std::move(request), entry.path().filename().string());
  }
  http::Request request;
  request.body = mlmodel(upload, id);
  put(std::move(request), "MLmodel");
  upload.api.post("unity-catalog/model-versions/finalize",
                  {{"name", upload.registered}, {"version", version}});
  upload.api.post("unity-catalog/registered-models/alias",
                  {{"name", upload.registered},
                   {"alias", upload.which == "best" ? "best" : "last"},
                   {"version", version}});
}

}  // namespace mlflow
