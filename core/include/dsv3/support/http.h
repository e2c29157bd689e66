// An HTTP client with connection reuse, limits on what a server may send, and credentials that
// belong to one server.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

namespace dsv3::http {

/// Scheme, host and port of a URL.
class Origin {
 public:
  /// Throws dsv3::Error unless `url` is an absolute http or https URL without user and password.
  explicit Origin(const std::string& url);
  bool is_https() const { return scheme_ == "https"; }
  bool is_loopback() const;  ///< localhost, 127.0.0.0/8 or [::1]
  std::string text() const { return scheme_ + "://" + host_ + ":" + port_; }
  bool operator==(const Origin&) const = default;

 private:
  std::string scheme_, host_, port_;  // in lower case, with the default port
};

/// A login that is sent to one origin only. Later messages and logs do not contain its secrets.
class Credential {
 public:
  /// `url` must come from the same layer as the secret (see docs/design.md), or be the service's
  /// default address.
  explicit Credential(const std::string& url) : origin_(url) {}
  /// Each function adds to the credential. Throws dsv3::Error for values that HTTP cannot
  /// transport.
  Credential& basic(const std::string& user, const std::string& password);
  Credential& bearer(const std::string& token);
  /// A client certificate in PEM format. `key` may be empty if the certificate's file contains it.
  Credential& certificate(const std::filesystem::path& certificate,
                          const std::filesystem::path& key = {});
  /// Allows sending over plain http to other machines. Loopback needs no permission.
  Credential& allow_plain_http();
  const Origin& origin() const { return origin_; }

 private:
  friend class Transfer;
  Origin origin_;
  std::optional<std::pair<std::string, std::string>> basic_;
  std::string bearer_;
  std::filesystem::path certificate_, key_;
  bool plain_http_ = false;
};

/// Bytes `first` to `last`, counted from 0 and inclusive.
struct Range {
  uint64_t first = 0;
  std::optional<uint64_t> last;  ///< none = to the end
};

struct Timeouts {
  std::chrono::milliseconds connect{10'000};
  std::chrono::milliseconds total{120'000};  ///< including redirects; 0 = unlimited
  /// A transfer that is slower than `bytes_per_second` for this long ends. This includes waiting
  /// for the server's answer. 0 = unlimited.
  std::chrono::seconds stall{60};
  int64_t bytes_per_second = 100;
};

struct Limits {
  uint64_t headers = 256 << 10;  ///< bytes of all headers of a response
  uint64_t body = 8 << 20;       ///< bytes of a response's body after decompression
};

struct Request {
  std::string method = "GET";  ///< GET, HEAD, POST, PUT, PATCH or DELETE
  /// Messages show it without its query, which may contain a signature.
  std::string url;
  /// Sent to the URL's origin only. Credentials and framing (Host, Content-Length, Range) have
  /// their own fields and are rejected here.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  /// A regular file to send instead of `body`. It is not read into memory.
  std::filesystem::path body_file;
  std::optional<Credential> credential;  ///< must belong to the URL's origin
  /// The answer is then the requested range, 416 or another error. A server that ignores the range
  /// causes a Failure (invalid).
  std::optional<Range> range;
  /// Receives the body of a successful response in pieces, instead of Response::body. What it
  /// throws ends the transfer and is rethrown by send().
  std::function<void(std::string_view)> sink;
  /// Number of redirects of GET and HEAD to follow. Credential and headers are not sent to another
  /// origin. A redirect from https to http is a Failure (invalid).
  int redirects = 0;
  Timeouts timeouts;
  Limits limits;
  std::stop_token stop;  ///< ends the transfer within about a second

  /// Sets the body and its Content-Type. Bytes that are not UTF-8 are replaced. NaN becomes null,
  /// so convert numbers with number_to_json().
  Request& json(const Json& content);
};

/// A transfer that ended without a complete, acceptable response.
class Failure : public Error {
 public:
  enum class Kind {
    resolve = 1,  ///< the name of the host or proxy cannot be resolved
    connect,      ///< connection refused or host unreachable
    timeout,      ///< one of Timeouts
    tls,          ///< certificate, handshake or certificate files
    aborted,      ///< Request::stop
    too_large,    ///< one of Limits
    broken,       ///< the connection ended early
    invalid       ///< not acceptable: not HTTP, a wrong range, a forbidden redirect, invalid JSON
  };
  Failure(Kind kind, const std::string& what) : Error(what), kind_(kind) {}
  ~Failure() override;
  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

/// Any complete response, whatever its status.
struct Response {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case
  std::string body;                                          ///< empty if it was passed to the sink
  std::string source;  ///< "GET https://host/path", for messages

  bool ok() const { return status >= 200 && status < 300; }
  /// Returns the first header with this name, in lower case, or "".
  std::string header(std::string_view name) const;
  /// Parses the body with parse_json()'s limits. Throws a Failure (invalid) that does not quote it.
  Json json() const;
  /// The start of the body as one escaped line of at most about 200 bytes, for messages.
  std::string excerpt() const;
};

enum class Retry {
  no = 1,   ///< the same request will fail again
  limited,  ///< either side may be at fault, so repeat a few times only (500, TLS, invalid
            ///< responses)
  yes       ///< the server is overloaded or away
};
Retry retry(int status);
Retry retry(const Failure& failure);
/// Returns the response's Retry-After (seconds or a date) as the time to wait, at most a day.
std::optional<std::chrono::seconds> retry_after(const Response& response);

/// Percent-encodes `text` for use as a path segment or as a name or value in a query.
std::string escape(std::string_view text);

/// Which servers to trust. Applies to all requests of a client, so use one client per service.
struct Tls {
  std::filesystem::path ca_file;  ///< PEM; replaces the system's certificates
  bool insecure = false;          ///< accepts any certificate
};

/// Sends requests and keeps connections open in between. Use one client per thread: its functions
/// must not run at the same time. Do not use it in a forked child. Proxies are those of the usual
/// variables (https_proxy, no_proxy and so on), except for loopback. Needs TLS 1.2 or later.
class Client {
 public:
  explicit Client(Tls tls = {});
  ~Client();
  Client(Client&&) noexcept;
  /// Throws a Failure if there is no complete response, and dsv3::Error for an invalid request or
  /// an unreadable `body_file`.
  Response send(const Request& request);

 private:
  std::unique_ptr<void, void (*)(void*)> curl_;
  Tls tls_;
};

}  // namespace dsv3::http
