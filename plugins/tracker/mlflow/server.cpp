#include "server.h"

#include <dsv3/sdk/log.h>

namespace mlflow {
namespace {

namespace http = dsv3::http;
using dsv3::SettingsLayer;

constexpr const char* kUri = "MLFLOW_TRACKING_URI";

std::string value_in(const SettingsLayer& layer, const std::string& name) {
  const auto found = layer.values.find(name);
  return found == layer.values.end() ? "" : found->second;
}

std::string checked_url(std::string uri, const std::string& place) {
  while (uri.ends_with('/')) uri.pop_back();
  if (uri.starts_with("http://") || uri.starts_with("https://")) return uri;
  throw dsv3::Error("MLflow address '" + uri + "' (" + place +
                        ") does not start with http:// or https://; start a server for local "
                        "files with `tools/dev mlflow` and use its address",
                    dsv3::ExitCode::usage);
}

std::optional<http::Credential> credential_in(const SettingsLayer& layer, const std::string& url) {
  const std::string user = value_in(layer, "MLFLOW_TRACKING_USERNAME");
  const std::string password = value_in(layer, "MLFLOW_TRACKING_PASSWORD");
  const std::string token = value_in(layer, "MLFLOW_TRACKING_TOKEN");
  const std::string certificate = value_in(layer, "MLFLOW_TRACKING_CLIENT_CERT_PATH");
  if (user.empty() && password.empty() && token.empty() && certificate.empty()) return std::nullopt;
  http::Credential credential(url);
  if (!certificate.empty()) credential.certificate(certificate);
  if (!user.empty())
    credential.basic(user, password);
  else if (!token.empty())
    credential.bearer(token);
  return credential;
}

bool is_true(const std::string& value) {
  return value == "true" || value == "True" || value == "1";
}

Server server_in(const SettingsLayer& layer, const std::string& url) {
  Server server{url, credential_in(layer, url), {}};
  server.tls.ca_file = value_in(layer, "MLFLOW_TRACKING_SERVER_CERT_PATH");
  server.tls.insecure = is_true(value_in(layer, "MLFLOW_TRACKING_INSECURE_TLS"));
  return server;
}

}  // namespace

std::string find_setting(const std::vector<SettingsLayer>& settings, const std::string& name) {
  for (const SettingsLayer& layer : settings)
    if (const std::string value = value_in(layer, name); !value.empty()) return value;
  return "";
}

std::optional<Server> find_server(const std::string& uri,
                                  const std::vector<SettingsLayer>& settings) {
  if (!uri.empty()) {
    const Server server{checked_url(uri, "tracker option 'uri'"), std::nullopt, {}};
    for (const SettingsLayer& layer : settings) {
      const std::string same = value_in(layer, kUri);
      if (!same.empty() && checked_url(same, layer.label) == server.url)
        return server_in(layer, server.url);
      if (credential_in(layer, server.url))
        dsv3::log::warning("the MLflow login in " + layer.label +
                           " is not used, because the experiment sets the address; set " + kUri +
                           " in the same place");
    }
    return server;
  }
  for (const SettingsLayer& layer : settings)
    if (const std::string found = value_in(layer, kUri); !found.empty())
      return server_in(layer, checked_url(found, layer.label));
  return std::nullopt;
}

}  // namespace mlflow
