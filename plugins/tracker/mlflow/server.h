// Where the MLflow server is, and how to log in.
#pragma once

#include "api.h"

namespace mlflow {

/// Returns the server with the address `uri`, or, if that is empty, with the address in the first
/// layer that has one; nullopt if none has. The login comes from the layer that has the address, so
/// that no other place can direct it elsewhere. Throws dsv3::Error (ExitCode::usage) for an address
/// that is not that of a server.
std::optional<Server> find_server(const std::string& uri,
                                  const std::vector<dsv3::SettingsLayer>& settings);

/// The value of a variable in the first layer that has it; "" if none has.
std::string find_setting(const std::vector<dsv3::SettingsLayer>& settings, const std::string& name);

}  // namespace mlflow
