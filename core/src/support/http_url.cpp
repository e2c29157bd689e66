#include "support/http_url.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <openssl/evp.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/support/http.h>

namespace dsv3::http {
namespace {

constexpr size_t kExcerpt = 200;  // bytes

std::string part(const ParsedUrl& url, CURLUPart which) {
  char* text = nullptr;
  if (curl_url_get(url.get(), which, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return {};
  std::string copy = text;
  curl_free(text);
  std::ranges::transform(copy, copy.begin(), [](unsigned char c) { return std::tolower(c); });
  return copy;
}

std::string base64(const std::string& bytes) {
  std::string out(4 * ((bytes.size() + 2) / 3) + 1, '\0');  // with the final zero byte
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                  reinterpret_cast<const unsigned char*>(bytes.data()),
                  static_cast<int>(bytes.size()));
  out.pop_back();
  return out;
}

void check_secret(std::string_view secret, const Origin& origin) {
  if (secret.empty() || has_control_characters(secret))
    throw Error("invalid credential for " + printable_line(origin.text()) +
                ": it is empty or contains control characters, such as a newline");
}

std::optional<std::chrono::seconds> seconds_until(const std::string& date,
                                                  const Response& response) {
  const time_t then = curl_getdate(date.c_str(), nullptr);
  if (then == -1) return {};
  // The server's clock may differ from this machine's.
  const time_t server_now = curl_getdate(response.header("date").c_str(), nullptr);
  return std::chrono::seconds(then - (server_now == -1 ? time(nullptr) : server_now));
}

}  // namespace

bool has_control_characters(std::string_view text) {
  return std::ranges::any_of(text, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

std::string excerpt(std::string_view text) {
  std::string_view start = text.substr(0, kExcerpt);
  start.remove_suffix(incomplete_character(start));
  return printable_line(start) + (start.size() < text.size() ? "..." : "");
}

std::string shown_url(const std::string& url) {
  return excerpt(url.substr(0, url.find_first_of("?#")));
}

ParsedUrl parse_url(const std::string& url) {
  ParsedUrl parsed(curl_url(), curl_url_cleanup);
  const CURLUcode code = curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0);
  const auto fail = [&](const std::string& why) {
    // A password with a '/' or '?' can be anywhere in an invalid URL.
    const bool may_hold_password = url.find('@') != url.npos;
    throw Error("invalid URL " + (may_hold_password ? "with an '@'" : "'" + shown_url(url) + "'") +
                ": " + why);
  };
  if (code != CURLUE_OK || has_control_characters(url)) fail(curl_url_strerror(code));
  const std::string scheme = part(parsed, CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https") fail("the scheme must be http or https");
  if (!part(parsed, CURLUPART_USER).empty() || !part(parsed, CURLUPART_PASSWORD).empty())
    fail("it must not contain a user or password");
  return parsed;
}

Origin::Origin(const std::string& url) {
  const ParsedUrl parsed = parse_url(url);
  scheme_ = part(parsed, CURLUPART_SCHEME);
  host_ = part(parsed, CURLUPART_HOST);
  port_ = part(parsed, CURLUPART_PORT);
}

bool Origin::is_loopback() const {
  const bool is_address = host_.find_first_not_of("0123456789.") == host_.npos;
  // libcurl resolves localhost without asking a name server.
  return host_ == "localhost" || host_ == "[::1]" || (is_address && host_.starts_with("127."));
}

Credential& Credential::basic(const std::string& user, const std::string& password) {
  check_secret(user + password, origin_);
  if (user.find(':') != user.npos)
    throw Error("invalid credential for " + printable_line(origin_.text()) +
                ": the user contains a colon");
  hide_text(password, "[password]");
  hide_text(base64(user + ":" + password), "[credential]");
  basic_ = {user, password};
  return *this;
}

Credential& Credential::bearer(const std::string& token) {
  check_secret(token, origin_);
  hide_text(token, "[token]");
  bearer_ = token;
  return *this;
}

Credential& Credential::certificate(const std::filesystem::path& certificate,
                                    const std::filesystem::path& key) {
  certificate_ = certificate;
  key_ = key;
  return *this;
}

Credential& Credential::allow_plain_http() {
  plain_http_ = true;
  return *this;
}

Failure::~Failure() = default;

std::string Response::header(std::string_view name) const {
  const auto found = std::ranges::find(headers, name, &std::pair<std::string, std::string>::first);
  return found == headers.end() ? "" : found->second;
}

Json Response::json() const {
  try {
    return parse_json(body, "");
  } catch (const Error& error) {
    // The parser's message is ":line:column: reason". What it quotes is part of the body.
    std::string reason = error.what();
    reason = reason.substr(1, reason.find_first_of("'\"") - 1);
    throw Failure(Failure::Kind::invalid, "invalid response to '" + source + "' (status " +
                                              std::to_string(status) + ") at " + reason);
  }
}

std::string Response::excerpt() const {
  return http::excerpt(body);
}

Retry retry(int status) {
  if (status == 408 || status == 429 || (status >= 502 && status <= 504)) return Retry::yes;
  return status == 500 ? Retry::limited : Retry::no;
}

Retry retry(const Failure& failure) {
  using Kind = Failure::Kind;
  switch (failure.kind()) {
    case Kind::resolve:
    case Kind::connect:
    case Kind::timeout:
    case Kind::broken:
      return Retry::yes;
    case Kind::tls:
    case Kind::invalid:
      return Retry::limited;
    case Kind::aborted:
    case Kind::too_large:
      return Retry::no;
  }
  return Retry::no;
}

std::optional<std::chrono::seconds> retry_after(const Response& response) {
  constexpr std::chrono::seconds kLongest = std::chrono::hours(24);
  const std::string value = response.header("retry-after");
  if (value.empty()) return {};
  if (value.find_first_not_of("0123456789") != value.npos) {
    const auto seconds = seconds_until(value, response);
    if (!seconds) return {};
    return std::clamp(*seconds, std::chrono::seconds(0), kLongest);
  }
  int64_t seconds = 0;
  const auto parsed = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (parsed.ec != std::errc()) return kLongest;
  return std::min(std::chrono::seconds(seconds), kLongest);
}

std::string escape(std::string_view text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const unsigned char c : text) {
    const bool unreserved =
        c < 0x80 && (std::isalnum(c) || std::string_view("-._~").find(c) != std::string_view::npos);
    if (unreserved)
      out += static_cast<char>(c);
    else
      out += {'%', kHex[c >> 4], kHex[c & 15]};
  }
  return out;
}

}  // namespace dsv3::http
