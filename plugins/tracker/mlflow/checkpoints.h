// Checkpoints as logged models and versions of a registered model.
#pragma once

#include "api.h"
#include "run.h"

namespace mlflow {

struct ModelUpload {
  Api& api;
  dsv3::TrackerStore& store;
  const RemoteRun& run;
  const std::string& which;       ///< "best" or "last"
  const std::string& registered;  ///< name of the registered model; empty = none
};

/// Whether to upload a checkpoint, for `which` = "none", "best" or "last". One without val/loss is
/// never the best.
bool is_chosen(const std::string& which, const dsv3::Record& checkpoint,
               const dsv3::TrackerStore& store);

/// Creates a version of the registered model for the logged model `id`, unless an earlier attempt
/// has done so, and returns its number. `registry` is the start of the endpoints: "" or
/// "unity-catalog/".
std::string new_version(const ModelUpload& upload, const std::string& id,
                        const std::string& registry);

/// Uploads the files in `folder` as a logged model of the run, with the checkpoint's metrics.
void upload_model(const ModelUpload& upload, const std::filesystem::path& folder,
                  const dsv3::Record& checkpoint);

}  // namespace mlflow
