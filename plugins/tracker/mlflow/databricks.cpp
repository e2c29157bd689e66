#include "databricks.h"

#include <algorithm>
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

namespace {

struct Address {
  std::string url, type;
  std::vector<std::pair<std::string, std::string>> headers;
};

Address checked_address(const Json& answer, const std::string& url, const std::string& type) {
  if (!url.starts_with("https://")) throw BadAnswer("an upload without https");
  Address address{url, type, {}};
  for (const Json& header : array_in(answer, "headers"))
    address.headers.emplace_back(text_in(header, "name"), text_in(header, "value"));
  return address;
}

Address signed_address(const Json& info) {
  return checked_address(info, text_in(info, "signed_uri"), text_in(info, "type"));
}

Address address_of(Api& api, const std::string& path) {
  const size_t id = path.find('/') + 1, file = path.find('/', id) + 1;
  const std::string owner = path.substr(id, file - id - 1), name = path.substr(file);
  if (path.starts_with("runs/")) {
    const Json answer =
        api.post("artifacts/credentials-for-write", {{"run_id", owner}, {"path", {name}}});
    const Json list = array_in(answer, "credential_infos");
    if (list.size() != 1) throw BadAnswer("not one address for an upload");
    return signed_address(list[0]);
  }
  const Json answer =
      api.post("logged-models/" + http::escape(owner) + "/artifacts/credentials-for-upload",
               {{"paths", {name}}});
  const Json list = array_in(answer, "credentials");
  if (list.size() != 1) throw BadAnswer("not one address for an upload");
  return signed_address(object_in(list[0], "credential_info"));
}

std::string with_query(const std::string& url, const std::string& query) {
  return url + (url.find('?') == url.npos ? '?' : '&') + query;
}

/// Sends one request without the workspace's credential. The answer may quote the signature, so
/// messages do not contain it.
void send_unsigned(Api& api, http::Request request) {
  const http::Response response = api.send_elsewhere(request);
  if (response.ok()) return;
  const std::string text =
      response.source + " answered " + std::to_string(response.status) + " to an upload";
  // Object stores answer 400 to files above their limit, but also to signatures that have expired.
  if (response.status == 413 || response.body.find("EntityTooLarge") != response.body.npos)
    throw ApiError(text + ", because the file is too large", 413, "");
  throw dsv3::Error(text);
}

uint64_t size_of(const http::Request& request) {
  return request.body_file.empty() ? request.body.size()
                                   : std::filesystem::file_size(request.body_file);
}

/// Azure's Data Lake: create, append, flush.
void put_data_lake(Api& api, const Address& address, const http::Request& content) {
  const std::string size = std::to_string(size_of(content));
  http::Request step{.method = "PUT", .url = with_query(address.url, "resource=file")};
  step.headers = address.headers;
  send_unsigned(api, step);
  http::Request append = content;
  append.method = "PATCH";
  append.url = with_query(address.url, "action=append&position=0");
  if (size != "0") send_unsigned(api, append);
  step.method = "PATCH";
  step.url = with_query(address.url, "action=flush&position=" + size);
  send_unsigned(api, step);
}

void put_to(Api& api, const Address& address, http::Request request) {
  request.headers = address.headers;
  if (address.type == "AZURE_ADLS_GEN2_SAS_URI") return put_data_lake(api, address, request);
  if (address.type == "AZURE_SAS_URI") request.headers.emplace_back("x-ms-blob-type", "BlockBlob");
  request.method = "PUT";
  request.url = address.url;
  // Object stores answer 501 to a streamed empty file.
  if (size_of(request) == 0) request.body_file.clear();
  send_unsigned(api, std::move(request));
}

}  // namespace

void put_signed(Api& api, http::Request request, const std::string& path) {
  put_to(api, address_of(api, path), std::move(request));
}

void put_presigned(Api& api, http::Request request, const std::string& path) {
  const Json answer = api.post_path("/api/2.0/fs/create-upload-url", {{"path", path}});
  put_to(api, checked_address(answer, text_in(answer, "url"), ""), std::move(request));
}

}  // namespace mlflow
