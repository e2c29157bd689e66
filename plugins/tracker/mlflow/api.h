// Calls of MLflow's REST API.
#pragma once

#include <filesystem>
#include <optional>
#include <stop_token>
#include <string>

#include <dsv3/sdk/tracker.h>
#include <dsv3/support/http.h>

namespace mlflow {

using dsv3::Json;

/// A request that the server understood and rejected. Repeating it is of no use.
class ApiError : public dsv3::Error {
 public:
  ApiError(const std::string& what, int status, std::string code)
      : Error(what), status(status), code(std::move(code)) {}
  int status;
  std::string code;  ///< MLflow's error_code, such as RESOURCE_DOES_NOT_EXIST; may be empty
};

/// An MLflow server and how to log in.
struct Server {
  std::string url;  ///< without a slash at its end
  std::optional<dsv3::http::Credential> credential;
  dsv3::http::Tls tls;
};

/// Sends requests to one server. Not thread-safe: use one object per thread.
class Api {
 public:
  /// `stop` ends a request that is under way.
  Api(Server server, std::stop_token stop);

  /// Calls an endpoint below /api/2.0/mlflow/, such as "runs/create". Throws ApiError,
  /// dsv3::RetryAfter if the server asks to wait, or http::Failure if it gives no answer.
  Json get(const std::string& endpoint,
           const std::vector<std::pair<std::string, std::string>>& query = {});
  Json post(const std::string& endpoint, const Json& body);
  Json patch(const std::string& endpoint, const Json& body);
  /// Uploads a file, or a text, to a path below /api/2.0/mlflow-artifacts/artifacts/.
  void put_file(const std::string& path, const std::filesystem::path& file);
  void put_text(const std::string& path, const std::string& text);
  /// Downloads a file from a path below /api/2.0/mlflow-artifacts/artifacts/ to a new file.
  void get_file(const std::string& path, const std::filesystem::path& target);
  /// Sends a request as it is, with the credential and time-outs.
  dsv3::http::Response send(dsv3::http::Request request);

  const Server& server() const { return server_; }
  /// For calls that training waits for.
  void set_timeouts(dsv3::http::Timeouts timeouts) { timeouts_ = timeouts; }

 private:
  Json call(dsv3::http::Request request);
  dsv3::http::Response transfer(dsv3::http::Request request, const std::string& path);
  void put(dsv3::http::Request request, const std::string& path);

  Server server_;
  std::stop_token stop_;
  dsv3::http::Client client_;
  dsv3::http::Timeouts timeouts_;
};

/// Returns the response's JSON, or throws ApiError or dsv3::RetryAfter that quotes MLflow's
/// message.
Json checked(const dsv3::http::Response& response);

}  // namespace mlflow
