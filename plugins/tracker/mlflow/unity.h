// Versions of models in Databricks' Unity Catalog.
#pragma once

#include "checkpoints.h"

namespace mlflow {

/// The name catalog.schema.model of a registered model. `catalog` may supply the first parts.
/// Throws dsv3::Error (ExitCode::usage) if the name does not have three parts.
std::string unity_name(const std::string& model, const std::string& catalog);

/// Creates a version of the model upload.registered from the logged model `id`, uploads the files
/// in `folder` and an MLmodel file to it, and sets the alias.
void register_unity_version(const ModelUpload& upload, const std::string& id,
                            const std::filesystem::path& folder);

}  // namespace mlflow
