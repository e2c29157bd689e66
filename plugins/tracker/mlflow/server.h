// Where the MLflow server is, and how to log in.
#pragma once

#include "api.h"

namespace mlflow {

/// Returns the server with the address `uri`, or, if that is empty, with the address in the first
/// layer that has one, or else the Databricks workspace that a layer names. The login comes from
/// the layer that has the address, so that no other place can direct it elsewhere. Throws
/// dsv3::Error (ExitCode::usage) for an address that is not that of a server.
ServerChoice find_server(const std::string& uri, const std::vector<dsv3::SettingsLayer>& settings);

/// The value of a variable in the first layer that has it; "" if none has.
std::string find_setting(const std::vector<dsv3::SettingsLayer>& settings, const std::string& name);

/// The value of a variable in a layer; "" if it has none.
std::string value_in(const dsv3::SettingsLayer& layer, const std::string& name);
/// Returns `uri` without slashes at its end, or throws dsv3::Error (ExitCode::usage) that names
/// `place`.
std::string checked_url(std::string uri, const std::string& place);
dsv3::http::Tls tls_in(const dsv3::SettingsLayer& layer);
/// An empty credential for `url`. Throws dsv3::Error (ExitCode::usage) if it would be readable on
/// the network.
dsv3::http::Credential new_credential(const dsv3::SettingsLayer& layer, const std::string& url);

}  // namespace mlflow
