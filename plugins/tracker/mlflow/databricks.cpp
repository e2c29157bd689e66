#include "databricks.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>

#include "server.h"

namespace mlflow {
namespace {

namespace http = dsv3::http;
using dsv3::SettingsLayer;

constexpr std::string_view kUri = "databricks";

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

[[noreturn]] void fail(const std::string& what) {
  throw dsv3::Error(what, dsv3::ExitCode::usage);
}

std::string profiles_file(const std::vector<SettingsLayer>& settings) {
  const std::string file = find_setting(settings, "DATABRICKS_CONFIG_FILE");
  if (!file.empty()) return file;
  const char* const home = std::getenv("HOME");
  return std::string(home ? home : "") + "/.databrickscfg";
}

/// The values of a profile, as the variables of the same meaning; empty if it does not exist.
SettingsLayer read_profile(const std::string& path, const std::string& profile) {
  SettingsLayer layer{path + " [" + profile + "]", {}};
  std::ifstream file(path);
  bool is_inside = false;
  for (std::string line; std::getline(file, line);) {
    line = trimmed(line);
    const size_t equals = line.find('=');
    if (line.starts_with('['))
      is_inside = line == "[" + profile + "]";
    else if (is_inside && equals != line.npos && line[0] != '#' && line[0] != ';') {
      std::string name = "DATABRICKS_" + trimmed(line.substr(0, equals));
      std::ranges::transform(name, name.begin(),
                             [](unsigned char c) { return char(std::toupper(c)); });
      layer.values[name] = trimmed(line.substr(equals + 1));
    }
  }
  return layer;
}

/// The address without what a browser adds: https://HOST/?o=ID.
std::string host_url(std::string host) {
  if (host.find("://") == host.npos) host = "https://" + host;
  return host.substr(0, host.find_first_of("/?#", host.find("://") + 3));
}

/// A number of bytes that a variable of MLflow's client sets, if it does.
void set_bytes(uint64_t& bytes, const std::vector<SettingsLayer>& settings,
               const std::string& name) {
  const std::string text = find_setting(settings, name);
  if (text.empty()) return;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, bytes);
  if (error != std::errc() || stop != end || bytes == 0)
    fail(name + " is '" + text + "', which is not a number of bytes");
}

ServerChoice workspace_in(const SettingsLayer& layer, const std::vector<SettingsLayer>& settings) {
  const std::string token = value_in(layer, "DATABRICKS_TOKEN"),
                    id = value_in(layer, "DATABRICKS_CLIENT_ID"),
                    secret = value_in(layer, "DATABRICKS_CLIENT_SECRET");
  if (token.empty() && (id.empty() || secret.empty()))
    return {std::nullopt, layer.label +
                              " sets a Databricks host, but neither DATABRICKS_TOKEN nor "
                              "DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET (a login is used "
                              "only with a host from the same place)"};
  Server server;
  server.url = checked_url(host_url(value_in(layer, "DATABRICKS_HOST")), layer.label);
  server.tls = tls_in(layer);
  server.is_databricks = true;
  server.workspace_id = value_in(layer, "DATABRICKS_WORKSPACE_ID");
  if (server.workspace_id.empty())
    server.workspace_id = find_setting(settings, "DATABRICKS_WORKSPACE_ID");
  if (server.workspace_id.find_first_not_of("0123456789") != std::string::npos)
    fail(
        "DATABRICKS_WORKSPACE_ID is not a number; it is the number after '?o=' in the address of "
        "the workspace");
  set_bytes(server.largest_request, settings, "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE");
  set_bytes(server.part_bytes, settings, "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE");
  http::Credential credential = new_credential(layer, server.url);
  try {
    if (token.empty())
      credential.basic(id, secret), server.is_oauth = true;
    else
      credential.bearer(token);
  } catch (const dsv3::Error& error) {
    fail(std::string(error.what()) + "; correct the Databricks login in " + layer.label);
  }
  server.credential = credential;
  return {server, ""};
}

}  // namespace

bool is_databricks_uri(const std::string& uri) {
  return uri == kUri || uri.starts_with(std::string(kUri) + "://");
}

ServerChoice find_workspace(const std::string& uri, const std::vector<SettingsLayer>& settings) {
  const bool has_profile = uri.size() > kUri.size() + 3;
  std::string profile = has_profile ? uri.substr(kUri.size() + 3) : "";
  if (!has_profile)
    for (const SettingsLayer& layer : settings)
      if (!value_in(layer, "DATABRICKS_HOST").empty()) return workspace_in(layer, settings);
  if (profile.empty()) profile = find_setting(settings, "DATABRICKS_CONFIG_PROFILE");
  if (profile.empty() && uri.empty()) return {};
  const std::string file = profiles_file(settings);
  SettingsLayer layer = read_profile(file, profile.empty() ? "DEFAULT" : profile);
  if (value_in(layer, "DATABRICKS_HOST").empty()) {
    if (!profile.empty())
      fail("Databricks profile '" + profile + "' with a host not found in " + file);
    return {std::nullopt,
            "no Databricks host is set; set "
            "DATABRICKS_HOST and DATABRICKS_TOKEN in the same place"};
  }
  for (const SettingsLayer& other : settings)
    if (other.label == "environment")
      layer.values["MLFLOW_TRACKING_SERVER_CERT_PATH"] =
          value_in(other, "MLFLOW_TRACKING_SERVER_CERT_PATH");
  return workspace_in(layer, settings);
}

std::string experiment_path(Api& api, const std::string& name) {
  if (name.starts_with('/')) return name;
  const auto advise = [&](const std::string& why) {
    return "MLflow experiment '" + name + "' is not an absolute path in the workspace, and " + why +
           "; set MLFLOW_EXPERIMENT_NAME to a path such as /Users/NAME/" + name;
  };
  std::string user;
  try {
    user = text_in(api.get_path("/api/2.0/preview/scim/v2/Me"), "userName");
  } catch (const ApiError& error) {
    if (error.status >= 500 || error.status == 401) throw;
    fail(advise("the workspace does not tell your name: " + std::string(error.what())));
  }
  const bool is_name =
      !user.empty() && user.size() <= 256 && user != "." && user != ".." &&
      std::ranges::none_of(user, [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '/'; });
  if (!is_name) throw BadAnswer("'userName' is not a name");
  return "/Users/" + user + "/" + name;
}

void require_folder(Api& api, const std::string& experiment) {
  const std::string folder = experiment.substr(0, experiment.rfind('/'));
  if (folder.empty()) return;
  try {
    api.get_path("/api/2.0/workspace/get-status", {{"path", folder}});
  } catch (const ApiError& error) {
    if (error.status != 404) throw;
    fail("workspace folder '" + folder + "' of MLflow experiment '" + experiment +
         "' not found; create the folder in Databricks, or correct MLFLOW_EXPERIMENT_NAME");
  }
}

}  // namespace mlflow
