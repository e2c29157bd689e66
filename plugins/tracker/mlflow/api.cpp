#include "api.h"

#include <algorithm>

#include <dsv3/support/fs.h>

#include "signed.h"

namespace mlflow {
namespace {

namespace http = dsv3::http;

const std::string kApi = "/api/2.0/mlflow/";
constexpr double kTokenMargin = 40, kLongestToken = 24 * 60 * 60;  // seconds
constexpr std::chrono::milliseconds kUnlimited{0};                 // a checkpoint may take hours

/// MLflow answers {"error_code", "message"}, its newer parts {"detail"}, and proxies HTML.
std::pair<std::string, std::string> error_in(const http::Response& response) {
  Json body;
  try {
    body = response.json();
  } catch (const dsv3::Error&) {
    // Not JSON.
  }
  const auto text = [&](const char* key) {
    return body.is_object() && body.contains(key) && body[key].is_string()
               ? body[key].get<std::string>()
               : std::string();
  };
  std::string message = text("message").empty() ? text("detail") : text("message");
  if (message.empty()) message = response.excerpt();
  return {text("error_code").substr(0, 100), message.substr(0, 500)};
}

std::string advice_for(const http::Response& response, const std::string& code,
                       const std::string& message, bool is_databricks) {
  if (response.status == 401 && is_databricks)
    return "; set a valid DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, "
           "in the place that sets DATABRICKS_HOST";
  if (response.status == 401)
    return "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
           "in the place that sets MLFLOW_TRACKING_URI";
  if (response.status == 403 && message.find("Invalid Host") != message.npos)
    return "; start the server with --allowed-hosts, or use the name by which it knows itself";
  if (response.status / 100 == 3)
    return "; set MLFLOW_TRACKING_URI to the server's final address, without a login page in front "
           "of it";
  if (response.status == 404 && code.empty())
    return "; check that MLFLOW_TRACKING_URI is the address of an MLflow server";
  return "";
}

std::string artifact_endpoint(const std::string& path) {
  std::string endpoint = "/api/2.0/mlflow-artifacts/artifacts";
  for (const std::filesystem::path& part : std::filesystem::path(path))
    endpoint += "/" + http::escape(part.string());
  return endpoint;
}

/// Returns the response's JSON, or throws ApiError or dsv3::RetryAfter that quotes MLflow's
/// message.
Json checked(const http::Response& response, bool is_databricks) {
  if (response.ok()) return response.body.empty() ? Json::object() : response.json();
  const auto [code, message] = error_in(response);
  const std::string text = response.source + " answered " + std::to_string(response.status) +
                           (code.empty() ? "" : " " + code) + ": " + message +
                           advice_for(response, code, message, is_databricks);
  if (http::retry(response.status) != http::Retry::yes) throw ApiError(text, response.status, code);
  const auto wait = http::retry_after(response);
  if (!wait) throw dsv3::Error(text);  // the core retries, with growing pauses
  throw dsv3::RetryAfter(text, double(wait->count()));
}

}  // namespace

Api::Api(Server server, std::stop_token stop)
    : server_(std::move(server)), stop_(std::move(stop)), client_(server_.tls) {}

/// A token of Databricks, requested with the credential when the last one is about to expire.
const http::Credential& Api::token() {
  using Clock = std::chrono::steady_clock;
  if (token_ && Clock::now() < token_end_) return *token_;
  http::Request request{.method = "POST", .url = server_.url + "/oidc/v1/token"};
  request.headers.emplace_back("Content-Type", "application/x-www-form-urlencoded");
  request.body = "grant_type=client_credentials&scope=all-apis";
  request.credential = server_.credential;
  request.timeouts = timeouts_;
  request.stop = stop_;
  const Json answer = checked(client_.send(request), /*is_databricks=*/true);
  const std::string token = text_in(answer, "access_token");
  const Json seconds = answer.value("expires_in", Json());
  if (token.empty() || !seconds.is_number()) throw BadAnswer("no access token");
  const double left = std::clamp(seconds.get<double>() - kTokenMargin, 0.0, kLongestToken);
  token_ = http::Credential(server_.url).bearer(token);
  token_end_ = Clock::now() + std::chrono::seconds(int64_t(left));
  return *token_;
}

http::Response Api::send(http::Request request) {
  if (server_.is_oauth)
    request.credential = token();
  else
    request.credential = server_.credential;
  if (!server_.workspace_id.empty())
    request.headers.emplace_back("x-databricks-org-id", server_.workspace_id);
  request.stop = stop_;
  http::Response response = client_.send(request);
  if (response.status == 401) token_.reset();
  return response;
}

http::Response Api::send_elsewhere(http::Request request) {
  request.timeouts.total = kUnlimited;
  request.stop = stop_;
  return client_.send(request);
}

http::Response Api::clean_up_elsewhere(http::Request request) {
  request.timeouts.total = std::chrono::milliseconds(700);
  return client_.send(request);
}

Json Api::call(const char* method, const std::string& path, const Json& body) {
  http::Request request{.method = method, .url = server_.url + path};
  request.timeouts = timeouts_;
  if (!body.is_null()) request.json(body);
  return checked(send(std::move(request)), server_.is_databricks);
}

Json Api::get(const std::string& endpoint,
              const std::vector<std::pair<std::string, std::string>>& query) {
  return get_path(kApi + endpoint, query);
}

Json Api::get_path(const std::string& path,
                   const std::vector<std::pair<std::string, std::string>>& query) {
  std::string target = path;
  char separator = '?';
  for (const auto& [name, value] : query) {
    target += separator + name + "=" + http::escape(value);
    separator = '&';
  }
  return call("GET", target);
}

Json Api::post(const std::string& endpoint, const Json& body) {
  return call("POST", kApi + endpoint, body);
}

Json Api::post_path(const std::string& path, const Json& body) {
  return call("POST", path, body);
}

Json Api::patch(const std::string& endpoint, const Json& body) {
  return call("PATCH", kApi + endpoint, body);
}

void Api::post_protobuf(const std::string& path, const std::string& message,
                        const std::vector<std::pair<std::string, std::string>>& headers) {
  http::Request request{.method = "POST", .url = server_.url + path};
  request.timeouts = timeouts_;
  request.headers = headers;
  request.headers.emplace_back("Content-Type", "application/x-protobuf");
  request.body = message;
  if (const http::Response response = send(std::move(request)); !response.ok())
    checked(response, server_.is_databricks);
}

void Api::put(http::Request request, const std::string& path) {
  if (server_.is_databricks) return put_signed(*this, std::move(request), path);
  put_path(std::move(request), artifact_endpoint(path));
}

void Api::get_file(const std::string& path, const std::filesystem::path& target) {
  dsv3::fs::Writer file(target);
  http::Request request;
  request.timeouts.total = kUnlimited;
  request.sink = [&](std::string_view part) { file.write(part); };
  if (server_.is_databricks) {
    get_signed(*this, std::move(request), path);
  } else {
    request.url = server_.url + artifact_endpoint(path);
    if (const http::Response response = send(std::move(request)); !response.ok())
      checked(response, server_.is_databricks);
  }
  file.sync();
}

void Api::put_path(http::Request request, const std::string& path) {
  request.method = "PUT";
  request.url = server_.url + path;
  request.headers.emplace_back("Content-Type", "application/octet-stream");
  request.timeouts.total = kUnlimited;
  checked(send(std::move(request)), server_.is_databricks);
}

void Api::put_file(const std::string& path, const std::filesystem::path& file) {
  http::Request request;
  request.body_file = file;
  put(std::move(request), path);
}

void Api::put_text(const std::string& path, const std::string& text) {
  http::Request request;
  request.body = text;
  put(std::move(request), path);
}

}  // namespace mlflow
