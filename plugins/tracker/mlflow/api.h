// Calls of MLflow's REST API.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <stop_token>
#include <string>

#include <dsv3/sdk/tracker.h>
#include <dsv3/support/http.h>

#include "answers.h"

namespace mlflow {

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
  bool is_databricks = false;
  bool is_oauth = false;     ///< the credential is exchanged for a token that expires
  std::string workspace_id;  ///< Databricks; may be empty
  /// A larger file is uploaded in parts of at least `part_bytes`. Databricks.
  uint64_t largest_request = 500 << 20, part_bytes = 10 << 20;
};

struct ServerChoice {
  std::optional<Server> server;
  std::string missing;  ///< the setting without which there is no server; may be empty
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
  /// The same for an endpoint with its whole path.
  Json get_path(const std::string& path,
                const std::vector<std::pair<std::string, std::string>>& query = {});
  Json post_path(const std::string& path, const Json& body);
  Json patch(const std::string& endpoint, const Json& body);
  /// Sends a message in the wire format of Protocol Buffers to an endpoint with its whole path.
  void post_protobuf(const std::string& path, const std::string& message,
                     const std::vector<std::pair<std::string, std::string>>& headers);
  /// Uploads a file, or a text, to a path such as RemoteRun::artifacts + "/log.txt".
  void put_file(const std::string& path, const std::filesystem::path& file);
  void put_text(const std::string& path, const std::string& text);
  /// Downloads what put_file() has uploaded, to a new file.
  void get_file(const std::string& path, const std::filesystem::path& target);
  /// Uploads the body or file of `request` to an endpoint with its whole path.
  void put_path(dsv3::http::Request request, const std::string& path);
  /// Sends to an address that the server has named, without the server's credential.
  dsv3::http::Response send_elsewhere(dsv3::http::Request request);
  /// The same for a short request that undoes something, also when calls are to end: within 0.7 s.
  dsv3::http::Response clean_up_elsewhere(dsv3::http::Request request);

  const Server& server() const { return server_; }
  /// For calls that training waits for.
  void set_timeouts(dsv3::http::Timeouts timeouts) { timeouts_ = timeouts; }

 private:
  Json call(const char* method, const std::string& path, const Json& body = nullptr);
  dsv3::http::Response send(dsv3::http::Request request);
  const dsv3::http::Credential& token();
  void put(dsv3::http::Request request, const std::string& path);

  Server server_;
  std::stop_token stop_;
  dsv3::http::Client client_;
  dsv3::http::Timeouts timeouts_;
  std::optional<dsv3::http::Credential> token_;  // OAuth
  std::chrono::steady_clock::time_point token_end_;
};

}  // namespace mlflow
