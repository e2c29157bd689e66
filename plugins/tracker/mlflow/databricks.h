// What differs between Databricks and other MLflow servers: addresses, logins and names.
#pragma once

#include "api.h"

namespace mlflow {

/// Whether a tracking URI means Databricks: `databricks` or `databricks://PROFILE`.
bool is_databricks_uri(const std::string& uri);

/// The workspace of the profile in `uri`, or of the first layer with DATABRICKS_HOST, or else of
/// the profile DATABRICKS_CONFIG_PROFILE or DEFAULT. `uri` may be empty: then a profile is used
/// only if a layer names it. Host and login come from the same place. Throws dsv3::Error
/// (ExitCode::usage) for values that cannot work.
ServerChoice find_workspace(const std::string& uri,
                            const std::vector<dsv3::SettingsLayer>& settings);

/// The absolute path of an experiment. A name without '/' at its start is in the user's folder.
std::string experiment_path(Api& api, const std::string& name);

/// Throws dsv3::Error (ExitCode::usage) unless the folder that will contain an experiment exists.
void require_folder(Api& api, const std::string& experiment);

}  // namespace mlflow
