#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/version.h>
#include <dsv3/support/http.h>

#include "support/http_url.h"

namespace dsv3::http {
namespace {

using Kind = Failure::Kind;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

constexpr uint64_t kErrorBody = 1 << 20;  // of a response that is not for the sink

/// A security option that libcurl ignores must not go unnoticed.
template <class Value>
void set(CURL* curl, CURLoption option, Value value) {
  if (const CURLcode code = curl_easy_setopt(curl, option, value); code != CURLE_OK)
    throw Error("cannot set option " + std::to_string(option) +
                " of libcurl: " + curl_easy_strerror(code));
}

void initialize() {
  // Never cleaned up, because other threads may use libcurl or OpenSSL while the process exits.
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (code != CURLE_OK)
    throw Error(std::string("cannot start libcurl: ") + curl_easy_strerror(code));
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") + 1 - first);
}

struct Description {
  Kind kind;
  std::string what, advice;
};

Description describe(CURLcode code) {
  if (static_cast<int>(code) == 100) code = CURLE_OUT_OF_MEMORY;  // CURLE_TOO_LARGE since 8.6
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
      return {Kind::resolve, "cannot resolve the host", "check its name and the network"};
    case CURLE_COULDNT_CONNECT:
      return {Kind::connect, "cannot connect", "check the address, and that the server is running"};
    case CURLE_OPERATION_TIMEDOUT:
      return {Kind::timeout, "timed out", "check the server's load"};
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_CLIENTCERT:
    case CURLE_SSL_INVALIDCERTSTATUS:
    case CURLE_PEER_FAILED_VERIFICATION:
      return {Kind::tls, "TLS failed",
              "check the certificates of the server and the client, and the CA file"};
    case CURLE_ABORTED_BY_CALLBACK:
      return {Kind::aborted, "aborted", ""};
    case CURLE_OUT_OF_MEMORY:  // libcurl limits the length of a header
      return {Kind::too_large, "a header is too large", "check the address"};
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
      return {Kind::invalid, "invalid response", "check that the address is that of a web server"};
    default:
      return {Kind::broken, "the connection was lost", "check the server and any proxy"};
  }
}

/// A file that is being sent.
class Upload {
 public:
  explicit Upload(const std::filesystem::path& path) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat info {};
    if (fd_ == -1 || ::fstat(fd_, &info) != 0) fail(std::strerror(errno));
    if (!S_ISREG(info.st_mode)) fail("not a regular file");
    size_ = static_cast<uint64_t>(info.st_size);
  }
  ~Upload() {
    if (fd_ != -1) ::close(fd_);
  }
  Upload(const Upload&) = delete;
  uint64_t size() const { return size_; }
  size_t read(char* into, size_t size) {
    size = std::min<uint64_t>(size, size_ - position_);
    const ssize_t count = ::pread(fd_, into, size, static_cast<off_t>(position_));
    if (count < 0) fail(std::strerror(errno));
    if (count == 0 && size > 0) fail("it became smaller");
    position_ += static_cast<size_t>(count);
    return static_cast<size_t>(count);
  }
  void seek(uint64_t position) { position_ = std::min(position, size_); }

 private:
  [[noreturn]] void fail(const std::string& why) {
    if (fd_ != -1) ::close(std::exchange(fd_, -1));
    throw Error("cannot send '" + printable_line(path_.string()) + "': " + why);
  }
  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t size_ = 0, position_ = 0;
};

void check_header(const std::string& name, const std::string& value) {
  static const std::vector<std::string> kOwned{
      "authorization", "proxy-authorization", "cookie",
      "host",          "content-length",      "transfer-encoding",
      "range",         "accept-encoding",     "connection"};
  const bool valid = !name.empty() && std::ranges::all_of(name, [](unsigned char c) {
    return std::isalnum(c) || c == '-' || c == '_';
  });
  if (!valid || has_control_characters(value))
    throw Error("invalid HTTP header '" + excerpt(name) +
                "': its name or value contains characters that are not allowed");
  if (std::ranges::find(kOwned, lower(name)) != kOwned.end())
    throw Error("header '" + name + "' cannot be set directly (use the fields of http::Request)");
}

}  // namespace

/// One request and its response, without redirects.
class Transfer {
 public:
  Transfer(CURL* curl, const Tls& tls, const Request& request, const std::string& url)
      : curl_(curl), request_(request), url_(parse_url(url)), origin_(url) {
    response_.source = request.method + " " + shown_url(url);
    set_transport(tls);
    set_callbacks();
    set_method();
  }
  Transfer(const Transfer&) = delete;

  const Origin& origin() const { return origin_; }

  /// What only the server that the caller named receives: its headers and the credential.
  void add_private_parts() {
    for (const auto& [name, value] : request_.headers)
      add_header(value.empty() ? name + ";" : name + ": " + value);
    if (request_.credential) set_credential(*request_.credential);
  }

  Response run(Milliseconds time_left) {
    set(curl_, CURLOPT_HTTPHEADER, headers_.get());
    set(curl_, CURLOPT_TIMEOUT_MS, static_cast<long>(time_left.count()));
    const CURLcode code = curl_easy_perform(curl_);
    if (error_) std::rethrow_exception(error_);
    if (code != CURLE_OK) fail(code);
    check_answer();
    check_range_size();
    return std::move(response_);
  }

  [[noreturn]] void fail(Kind kind, const std::string& why) const {
    throw Failure(kind, "request '" + response_.source + "' failed: " + why);
  }

 private:
  void set_transport(const Tls& tls) {
    set(curl_, CURLOPT_CURLU, url_.get());
    set(curl_, CURLOPT_PROTOCOLS_STR, "http,https");
    set(curl_, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    set(curl_, CURLOPT_USERAGENT, "dsv3/" DSV3_SDK_VERSION);
    set(curl_, CURLOPT_NOSIGNAL, 1L);
    set(curl_, CURLOPT_QUICK_EXIT, 1L);  // an aborted transfer does not wait for the name server
    set(curl_, CURLOPT_TCP_KEEPALIVE, 1L);
    set(curl_, CURLOPT_BUFFERSIZE, 256L << 10);
    set(curl_, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    set(curl_, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    set(curl_, CURLOPT_SSL_VERIFYPEER, tls.insecure ? 0L : 1L);
    set(curl_, CURLOPT_SSL_VERIFYHOST, tls.insecure ? 0L : 2L);
    if (!tls.ca_file.empty()) {
      set(curl_, CURLOPT_CAINFO, tls.ca_file.c_str());
      set(curl_, CURLOPT_CAPATH, static_cast<const char*>(nullptr));
    }
    set(curl_, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);  // a proxy's headers are not the server's
    if (origin_.is_loopback()) set(curl_, CURLOPT_NOPROXY, "*");
    const Timeouts& timeouts = request_.timeouts;
    set(curl_, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(timeouts.connect.count()));
    set(curl_, CURLOPT_LOW_SPEED_TIME, static_cast<long>(timeouts.stall.count()));
    set(curl_, CURLOPT_LOW_SPEED_LIMIT, static_cast<long>(timeouts.bytes_per_second));
  }

  void set_callbacks() {
    set(curl_, CURLOPT_ERRORBUFFER, reason_);
    set(curl_, CURLOPT_NOPROGRESS, 0L);
    set(curl_, CURLOPT_XFERINFODATA, this);
    set(curl_, CURLOPT_XFERINFOFUNCTION, &Transfer::on_progress);
    set(curl_, CURLOPT_HEADERDATA, this);
    set(curl_, CURLOPT_HEADERFUNCTION, &Transfer::on_header);
    set(curl_, CURLOPT_WRITEDATA, this);
    set(curl_, CURLOPT_WRITEFUNCTION, &Transfer::on_body);
    set(curl_, CURLOPT_OPENSOCKETFUNCTION, &Transfer::open_socket);
  }

  void set_method() {
    static const std::vector<std::string> kMethods{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"};
    const std::string& method = request_.method;
    if (std::ranges::find(kMethods, method) == kMethods.end())
      throw Error("unknown HTTP method '" + excerpt(method) + "'");
    const bool sends = method != "GET" && method != "HEAD";
    if (!sends && !(request_.body.empty() && request_.body_file.empty()))
      throw Error("a " + method + " request cannot have a body");
    if (!request_.body_file.empty())
      set_upload();
    else if (sends)
      set_body();
    else if (method == "HEAD")
      set(curl_, CURLOPT_NOBODY, 1L);
    if (sends) set(curl_, CURLOPT_CUSTOMREQUEST, method.c_str());
    // A compressed representation has other byte positions, and a sink stores what it receives.
    if (request_.range)
      set(curl_, CURLOPT_RANGE, range_text().c_str());
    else if (!request_.sink)
      set(curl_, CURLOPT_ACCEPT_ENCODING, "gzip, deflate");
  }

  void set_upload() {
    upload_.emplace(request_.body_file);
    set(curl_, CURLOPT_UPLOAD, 1L);
    set(curl_, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(upload_->size()));
    set(curl_, CURLOPT_READDATA, this);
    set(curl_, CURLOPT_READFUNCTION, &Transfer::on_read);
    set(curl_, CURLOPT_SEEKDATA, this);
    set(curl_, CURLOPT_SEEKFUNCTION, &Transfer::on_seek);
  }

  void set_body() {
    set(curl_, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request_.body.size()));
    set(curl_, CURLOPT_POSTFIELDS, request_.body.data());
    const bool has_type = std::ranges::any_of(
        request_.headers, [](const auto& header) { return lower(header.first) == "content-type"; });
    if (!has_type) add_header("Content-Type:");  // instead of libcurl's form-urlencoded
  }

  void set_credential(const Credential& credential) {
    if (!origin_.is_https() && !origin_.is_loopback() && !credential.plain_http_)
      throw Error("the credential for " + printable_line(origin_.text()) +
                  " would be readable on the network (use https)");
    if (credential.basic_ && !credential.bearer_.empty())
      throw Error("the credential for " + printable_line(origin_.text()) +
                  " has both a password and a token (remove one)");
    if (credential.basic_) {
      set(curl_, CURLOPT_HTTPAUTH, static_cast<long>(CURLAUTH_BASIC));
      set(curl_, CURLOPT_USERNAME, credential.basic_->first.c_str());
      set(curl_, CURLOPT_PASSWORD, credential.basic_->second.c_str());
    } else if (!credential.bearer_.empty()) {
      set(curl_, CURLOPT_HTTPAUTH, static_cast<long>(CURLAUTH_BEARER));
      set(curl_, CURLOPT_XOAUTH2_BEARER, credential.bearer_.c_str());
    }
    if (!credential.certificate_.empty())
      set(curl_, CURLOPT_SSLCERT, credential.certificate_.c_str());
    if (!credential.key_.empty()) set(curl_, CURLOPT_SSLKEY, credential.key_.c_str());
  }

  void add_header(const std::string& line) {
    curl_slist* longer = curl_slist_append(headers_.get(), line.c_str());
    if (longer == nullptr) throw std::bad_alloc();
    static_cast<void>(headers_.release());  // it belongs to the longer list
    headers_.reset(longer);
  }

  std::string range_text() const {
    return std::to_string(request_.range->first) + "-" +
           (request_.range->last ? std::to_string(*request_.range->last) : "");
  }

  /// Runs when the status and all headers are known: before the body, or at the end without a body.
  void check_answer() {
    if (response_.status != 0) return;
    long status = 0;
    curl_easy_getinfo(curl_, CURLINFO_RESPONSE_CODE, &status);
    response_.status = static_cast<int>(status);
    if (!response_.ok()) return;
    if (request_.range && !has_requested_range())
      fail(Kind::invalid, "the server ignored the range " + range_text());
    if (!request_.range && status == 206)
      fail(Kind::invalid, "the server sent a part that was not requested");
    const std::string encoding = response_.header("content-encoding");
    if ((request_.range || request_.sink) && !encoding.empty() && encoding != "identity")
      fail(Kind::invalid, "the server compressed the body with '" + excerpt(encoding) + "'");
  }

  bool has_requested_range() const {
    const std::string start = "bytes " + std::to_string(request_.range->first) + "-";
    return response_.status == 206 && response_.header("content-range").starts_with(start);
  }

  void check_range_size() const {
    if (response_.status != 206 || request_.method == "HEAD") return;
    // "bytes first-last/total". A file may end before the requested last byte.
    const std::string range = response_.header("content-range");
    const uint64_t first = request_.range->first;
    const uint64_t last = std::strtoull(range.c_str() + range.find('-') + 1, nullptr, 10);
    if (last < first || last > request_.range->last.value_or(UINT64_MAX) ||
        body_bytes_ != last - first + 1)
      fail(Kind::invalid, "the server sent " + std::to_string(body_bytes_) + " bytes of '" +
                              excerpt(range) + "' for the range " + range_text());
  }

  void take_header(std::string_view line) {
    header_bytes_ += line.size();
    if (header_bytes_ > request_.limits.headers)
      fail(Kind::too_large, "the headers of the response exceed the limit of " +
                                std::to_string(request_.limits.headers) + " bytes");
    if (line.starts_with("HTTP/")) response_.headers.clear();  // the previous ones were interim
    const size_t colon = line.find(':');
    if (colon == line.npos) return;
    response_.headers.emplace_back(lower(trimmed(line.substr(0, colon))),
                                   trimmed(line.substr(colon + 1)));
  }

  void take_body(std::string_view bytes) {
    check_answer();
    const bool to_sink = request_.sink && response_.ok();
    const uint64_t limit = request_.sink && !to_sink ? std::min(request_.limits.body, kErrorBody)
                                                     : request_.limits.body;
    body_bytes_ += bytes.size();
    if (body_bytes_ > limit)
      fail(Kind::too_large,
           "the response exceeds the limit of " + std::to_string(limit) + " bytes");
    if (to_sink)
      request_.sink(bytes);
    else
      response_.body += bytes;
  }

  [[noreturn]] void fail(CURLcode code) const {
    const std::string reason = excerpt(reason_[0] != '\0' ? reason_ : curl_easy_strerror(code));
    // With TLS 1.3, a server reports an unacceptable client certificate after the handshake.
    if (code == CURLE_RECV_ERROR && reason.find(" alert ") != reason.npos)
      code = CURLE_SSL_CONNECT_ERROR;
    // A load balancer without servers closes connections before it answers the handshake.
    const bool is_closed = reason.find("SSL_ERROR_SYSCALL") != reason.npos ||
                           reason.find("unexpected eof") != reason.npos;
    if (code == CURLE_SSL_CONNECT_ERROR && is_closed) code = CURLE_RECV_ERROR;
    const auto [kind, what, advice] = describe(code);
    fail(kind, kind == Kind::aborted ? what : what + ": " + reason + " (" + advice + ")");
  }

  /// Exceptions must not pass through libcurl, which is C code.
  template <class Result, class Body>
  Result guarded(Result failed, const Body& body) {
    try {
      return body();
    } catch (...) {
      error_ = std::current_exception();
      return failed;
    }
  }

  static size_t on_header(char* bytes, size_t, size_t size, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    return transfer.guarded(size_t{0}, [&] { return transfer.take_header({bytes, size}), size; });
  }
  static size_t on_body(char* bytes, size_t, size_t size, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    return transfer.guarded(CURL_WRITEFUNC_ERROR + size_t{0}, [&] {
      return transfer.take_body({bytes, size}), size;
    });
  }
  static size_t on_read(char* into, size_t, size_t size, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    return transfer.guarded(size_t{CURL_READFUNC_ABORT},
                            [&] { return transfer.upload_->read(into, size); });
  }
  static int on_seek(void* self, curl_off_t position, int) {
    static_cast<Transfer*>(self)->upload_->seek(static_cast<uint64_t>(position));
    return CURL_SEEKFUNC_OK;
  }
  static int on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    return static_cast<Transfer*>(self)->request_.stop.stop_requested() ? 1 : 0;
  }
  static curl_socket_t open_socket(void*, curlsocktype, curl_sockaddr* address) {
    // Programs that other threads start must not inherit connections.
    return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  }

  CURL* curl_;
  const Request& request_;
  ParsedUrl url_;
  Origin origin_;
  Response response_;
  std::optional<Upload> upload_;
  std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers_{nullptr, curl_slist_free_all};
  uint64_t header_bytes_ = 0, body_bytes_ = 0;
  char reason_[CURL_ERROR_SIZE] = {};
  std::exception_ptr error_;  // what a callback threw
  // Destroyed first, also if the constructor throws: libcurl forgets the members above, and keeps
  // the connection.
  std::unique_ptr<CURL, void (*)(CURL*)> reset_{curl_, curl_easy_reset};
};

namespace {

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/// Returns where the response redirects to. Throws a Failure if that is not allowed.
std::string redirect_target(CURL* curl, const Transfer& transfer) {
  const char* target = nullptr;
  curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &target);
  if (target == nullptr) transfer.fail(Kind::invalid, "a redirect without an address");
  try {
    const Origin next(target);
    if (transfer.origin().is_https() && !next.is_https())
      throw Error("a redirect from https to http");
  } catch (const Error& error) {
    transfer.fail(Kind::invalid, std::string("redirect not allowed: ") + error.what());
  }
  return target;
}

}  // namespace

Request& Request::json(const Json& content) {
  body = content.dump(-1, ' ', false, Json::error_handler_t::replace);
  headers.emplace_back("Content-Type", "application/json");
  return *this;
}

Client::Client(Tls tls) : curl_(nullptr, curl_easy_cleanup), tls_(std::move(tls)) {
  initialize();
  curl_.reset(curl_easy_init());
  if (curl_ == nullptr) throw std::bad_alloc();
}

Client::~Client() = default;
Client::Client(Client&&) noexcept = default;

namespace {

/// Sends a request that has been checked, and follows its redirects.
Response follow(CURL* curl, const Tls& tls, const Request& request) {
  const Origin first(request.url);
  const bool is_limited = request.timeouts.total.count() > 0;
  const Clock::time_point deadline = Clock::now() + request.timeouts.total;
  const bool follows =
      request.redirects > 0 && (request.method == "GET" || request.method == "HEAD");
  std::string url = request.url;
  bool is_first_server = true;  // and has never been left
  for (int followed = 0;; ++followed) {
    Transfer transfer(curl, tls, request, url);
    is_first_server = is_first_server && transfer.origin() == first;
    if (is_first_server) transfer.add_private_parts();
    if (request.stop.stop_requested()) transfer.fail(Kind::aborted, "aborted");
    const auto left = std::chrono::ceil<Milliseconds>(deadline - Clock::now());
    Response response =
        transfer.run(is_limited ? std::max(left, Milliseconds(1)) : Milliseconds(0));
    if (!follows || !is_redirect(response.status)) return response;
    if (followed == request.redirects)
      transfer.fail(Kind::invalid, "more than " + std::to_string(request.redirects) + " redirects");
    url = redirect_target(curl, transfer);
  }
}

}  // namespace

Response Client::send(const Request& request) {
  for (const auto& [name, value] : request.headers) check_header(name, value);
  const Origin origin(request.url);
  if (request.credential && request.credential->origin() != origin)
    throw Error("the credential for " + printable_line(request.credential->origin().text()) +
                " cannot be sent to " + printable_line(origin.text()));
  try {
    return follow(curl_.get(), tls_, request);
  } catch (...) {
    // After a host was not found, libcurl 7.88 does not accept all options for the same handle.
    if (CURL* const fresh = curl_easy_init()) curl_.reset(fresh);
    throw;
  }
}

}  // namespace dsv3::http
