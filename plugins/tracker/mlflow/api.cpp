#include "api.h"

#include <dsv3/support/fs.h>

namespace mlflow {
namespace {

namespace http = dsv3::http;

constexpr double kRetrySeconds = 2;  // if an overloaded server does not say how long to wait

/// MLflow answers {"error_code", "message"}, its newer parts {"detail"}, and proxies HTML.
std::pair<std::string, std::string> error_in(const http::Response& response) {
  const Json body = Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  const auto text = [&](const char* key) {
    return body.is_object() && body.contains(key) && body[key].is_string()
               ? body[key].get<std::string>()
               : std::string();
  };
  std::string message = text("message").empty() ? text("detail") : text("message");
  if (message.empty()) message = response.excerpt();
  return {text("error_code"), message.substr(0, 500)};
}

std::string advice_for(const http::Response& response, const std::string& message) {
  if (response.status == 401)
    return "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
           "in the place that sets MLFLOW_TRACKING_URI";
  if (response.status == 403 && message.find("Invalid Host") != message.npos)
    return "; start the server with --allowed-hosts, or use the name by which it knows itself";
  return "";
}

}  // namespace

Json checked(const http::Response& response) {
  if (response.ok()) return response.body.empty() ? Json::object() : response.json();
  const auto [code, message] = error_in(response);
  const std::string text = response.source + " answered " + std::to_string(response.status) +
                           (code.empty() ? "" : " " + code) + ": " + message +
                           advice_for(response, message);
  if (http::retry(response.status) != http::Retry::yes) throw ApiError(text, response.status, code);
  const auto wait = http::retry_after(response);
  if (!wait) throw dsv3::Error(text);  // the core retries, with growing pauses
  throw dsv3::RetryAfter(text, double(wait->count()));
}

Api::Api(Server server, std::stop_token stop)
    : server_(std::move(server)), stop_(std::move(stop)), client_(server_.tls) {}

http::Response Api::send(http::Request request) {
  request.credential = server_.credential;
  request.timeouts = timeouts_;
  request.stop = stop_;
  return client_.send(request);
}

Json Api::call(http::Request request) {
  return checked(send(std::move(request)));
}

Json Api::get(const std::string& endpoint,
              const std::vector<std::pair<std::string, std::string>>& query) {
  http::Request request;
  request.url = server_.url + "/api/2.0/mlflow/" + endpoint;
  char separator = '?';
  for (const auto& [name, value] : query) {
    request.url += separator + name + "=" + http::escape(value);
    separator = '&';
  }
  return call(std::move(request));
}

Json Api::post(const std::string& endpoint, const Json& body) {
  http::Request request;
  request.method = "POST";
  request.url = server_.url + "/api/2.0/mlflow/" + endpoint;
  request.json(body);
  return call(std::move(request));
}

Json Api::patch(const std::string& endpoint, const Json& body) {
  http::Request request;
  request.method = "PATCH";
  request.url = server_.url + "/api/2.0/mlflow/" + endpoint;
  request.json(body);
  return call(std::move(request));
}

http::Response Api::transfer(http::Request request, const std::string& path) {
  std::string escaped;
  for (const std::filesystem::path& part : std::filesystem::path(path))
    escaped += "/" + http::escape(part.string());
  request.url = server_.url + "/api/2.0/mlflow-artifacts/artifacts" + escaped;
  request.timeouts.total = std::chrono::milliseconds(0);  // a checkpoint may take hours
  request.credential = server_.credential;
  request.stop = stop_;
  return client_.send(request);
}

void Api::put(http::Request request, const std::string& path) {
  request.method = "PUT";
  request.headers.emplace_back("Content-Type", "application/octet-stream");
  checked(transfer(std::move(request), path));
}

void Api::get_file(const std::string& path, const std::filesystem::path& target) {
  dsv3::fs::Writer file(target);
  http::Request request;
  request.sink = [&](std::string_view part) { file.write(part); };
  const http::Response response = transfer(std::move(request), path);
  if (!response.ok()) checked(response);
  file.sync();
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
