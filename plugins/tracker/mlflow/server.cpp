#include "server.h"

#include <algorithm>
#include <array>

#include <dsv3/sdk/log.h>

#include "databricks.h"

namespace mlflow {
namespace {

namespace http = dsv3::http;
using dsv3::SettingsLayer;

constexpr const char* kUri = "MLFLOW_TRACKING_URI";

/// The address for a message. Addresses of databases and those with a login contain a password.
std::string shown(const std::string& uri) {
  return uri.find('@') == uri.npos ? "'" + uri + "'" : "with an '@'";
}

bool has_login(const SettingsLayer& layer) {
  return std::ranges::any_of(
      std::array{"USERNAME", "PASSWORD", "TOKEN", "CLIENT_CERT_PATH"}, [&](const char* name) {
        return !value_in(layer, std::string("MLFLOW_TRACKING_") + name).empty();
      });
}

std::optional<http::Credential> credential_in(const SettingsLayer& layer, const std::string& url) {
  const std::string user = value_in(layer, "MLFLOW_TRACKING_USERNAME");
  const std::string password = value_in(layer, "MLFLOW_TRACKING_PASSWORD");
  const std::string token = value_in(layer, "MLFLOW_TRACKING_TOKEN");
  const std::string certificate = value_in(layer, "MLFLOW_TRACKING_CLIENT_CERT_PATH");
  if (!has_login(layer)) return std::nullopt;
  http::Credential credential = new_credential(layer, url);
  try {
    if (!certificate.empty()) credential.certificate(certificate);
    if (!user.empty())
      credential.basic(user, password);
    else if (!token.empty())
      credential.bearer(token);
    return credential;
  } catch (const dsv3::Error& error) {
    throw dsv3::Error(std::string(error.what()) + "; correct the MLflow login in " + layer.label,
                      dsv3::ExitCode::usage);
  }
}

bool is_true(const std::string& value) {
  return value == "true" || value == "True" || value == "1";
}

Server server_in(const SettingsLayer& layer, const std::string& url) {
  Server server;
  server.url = url;
  server.credential = credential_in(layer, url);
  server.tls = tls_in(layer);
  return server;
}

}  // namespace

std::string value_in(const SettingsLayer& layer, const std::string& name) {
  const auto found = layer.values.find(name);
  return found == layer.values.end() ? "" : found->second;
}

std::string checked_url(std::string uri, const std::string& place) {
  while (uri.ends_with('/')) uri.pop_back();
  const auto fail = [&](const std::string& why) {
    throw dsv3::Error("invalid MLflow address " + shown(uri) + " (" + place + "): " + why,
                      dsv3::ExitCode::usage);
  };
  if (!uri.starts_with("http://") && !uri.starts_with("https://"))
    fail(
        "it does not start with http:// or https://; start a server for local files with "
        "`tools/dev mlflow` and use its address");
  if (uri.find('@') != uri.npos)
    fail("it contains a login; use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead");
  if (uri.find_first_of("?#") != uri.npos) fail("it contains a '?' or '#'");
  try {
    http::Origin{uri};
  } catch (const dsv3::Error& error) {
    fail(error.what());
  }
  return uri;
}

http::Tls tls_in(const SettingsLayer& layer) {
  return {value_in(layer, "MLFLOW_TRACKING_SERVER_CERT_PATH"),
          is_true(value_in(layer, "MLFLOW_TRACKING_INSECURE_TLS"))};
}

http::Credential new_credential(const SettingsLayer& layer, const std::string& url) {
  const http::Origin origin(url);
  if (!origin.is_https() && !origin.is_loopback())
    throw dsv3::Error("the login in " + layer.label + " would be readable on the network; use an " +
                          "address with https, or remove the login",
                      dsv3::ExitCode::usage);
  return http::Credential(url);
}

std::string find_setting(const std::vector<SettingsLayer>& settings, const std::string& name) {
  for (const SettingsLayer& layer : settings)
    if (const std::string value = value_in(layer, name); !value.empty()) return value;
  return "";
}

ServerChoice find_server(const std::string& uri, const std::vector<SettingsLayer>& settings) {
  if (is_databricks_uri(uri)) return find_workspace(uri, settings);
  if (!uri.empty()) {
    Server server;
    server.url = checked_url(uri, "tracker option 'uri'");
    for (const SettingsLayer& layer : settings) {
      const std::string same = value_in(layer, kUri);
      if (!same.empty() && !is_databricks_uri(same) && checked_url(same, layer.label) == server.url)
        return {server_in(layer, server.url), ""};
      if (has_login(layer))
        dsv3::log::warning("the MLflow login in " + layer.label +
                           " is not used, because the experiment sets the address; set " + kUri +
                           " in the same place");
    }
    return {server, ""};
  }
  for (const SettingsLayer& layer : settings) {
    const std::string found = value_in(layer, kUri);
    if (is_databricks_uri(found)) return find_workspace(found, settings);
    if (!found.empty()) return {server_in(layer, checked_url(found, layer.label)), ""};
  }
  return find_workspace("", settings);
}

}  // namespace mlflow
