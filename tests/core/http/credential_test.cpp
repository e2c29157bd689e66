// Credentials reach the server that they belong to, and nothing else.
#include <cstdlib>

#include <catch2/catch.hpp>

#include <dsv3/runtime/printable.h>
#include <dsv3/support/http.h>

#include "core/http/server.h"

namespace http = dsv3::http;
using Catch::Contains;
using http::Credential;
using http::Origin;

namespace {

constexpr const char* kToken = "canary-token-7f3a";

void ok(const Server::Request&, Peer& peer) {
  peer.answer(200, "ok");
}

/// Sets an environment variable during its lifetime.
struct Variable {
  Variable(const char* name, const std::string& value) : name(name) {
    ::setenv(name, value.c_str(), 1);
  }
  ~Variable() { ::unsetenv(name); }
  const char* name;
};

http::Failure::Kind failure_of(http::Client& client, const http::Request& request) {
  try {
    client.send(request);
  } catch (const http::Failure& failure) {
    return failure.kind();
  }
  throw std::runtime_error("the request succeeded");
}

}  // namespace

TEST_CASE("origins are compared by scheme, host and port") {
  const Origin origin("https://Host.example/path?q");
  CHECK(origin == Origin("HTTPS://hOST.example:443/other"));
  CHECK(origin.text() == "https://host.example:443");
  for (const std::string other :
       {"http://host.example", "https://host.example:444", "https://host.example.",
        "https://x.host.example", "https://host.example.evil"})
    CHECK_FALSE(origin == Origin(other));
  for (const std::string url : {"http://localhost", "http://LOCALHOST:1", "http://127.1.2.3",
                                "http://[::1]:9", "http://0x7f.1"})
    CHECK(Origin(url).is_loopback());
  for (const std::string url : {"http://127.evil.example", "http://localhost.evil",
                                "http://0.0.0.0", "http://127.0.0.1.evil", "http://[::2]"})
    CHECK_FALSE(Origin(url).is_loopback());
}

TEST_CASE("URLs with a user or password are rejected without being shown") {
  for (const std::string url :
       {"http://user:hunter2secret@host/", "http://hunter2secret@host/",
        "http://:hunter2secret@host/", "http://user:hunter2secret/x@host/",
        "http://user:hunter2secret?x@host/", "ftp://user:hunter2secret@host/"})
    CHECK_THROWS_WITH(Origin(url), Contains("invalid URL") && !Contains("hunter2"));
}

TEST_CASE("a login is sent to its origin") {
  Server server(ok);
  http::Client client;
  http::Request request{.url = server.url()};
  request.credential = Credential(server.url()).basic("user", "pass:word");
  client.send(request);
  CHECK_THAT(server.last_head(), Contains("\r\nAuthorization: Basic dXNlcjpwYXNzOndvcmQ=\r\n"));
  request.credential = Credential(server.url()).bearer(kToken);
  client.send(request);
  CHECK_THAT(server.last_head(),
             Contains(std::string("\r\nAuthorization: Bearer ") + kToken + "\r\n"));
  request.credential.reset();
  client.send(request);
  CHECK_THAT(server.last_head(), !Contains("Authorization"));
  CHECK(server.connections() == 1);
}

TEST_CASE("a rejected login is an ordinary response") {
  Server server([](const Server::Request&, Peer& peer) {
    peer.answer(401, "<html>no", "WWW-Authenticate: Basic realm=\"x\"\r\n");
  });
  http::Request request{.url = server.url()};
  request.credential = Credential(server.url()).basic("user", "wrong-password");
  const http::Response response = http::Client().send(request);
  CHECK(response.status == 401);
  CHECK(http::retry(response.status) == http::Retry::no);
  CHECK(server.requests().size() == 1);
}

TEST_CASE("a credential cannot be sent to another origin") {
  Server server(ok);
  http::Client client;
  http::Request request{.url = server.url()};
  for (const std::string owner : {server.url("/", "localhost"), std::string("http://127.0.0.1:1"),
                                  "https://127.0.0.1:" + std::to_string(server.port())}) {
    request.credential = Credential(owner).bearer(kToken);
    CHECK_THROWS_WITH(client.send(request), Contains("cannot be sent to http://127.0.0.1:"));
  }
  CHECK(server.requests().empty());
}

TEST_CASE("a credential needs https, except for loopback or with permission") {
  Server server(ok);
  http::Client client;
  const std::string url =
      server.url("/", "0.0.0.0");  // not a loopback address, but reaches the server
  http::Request request{.url = url, .credential = Credential(url).bearer(kToken)};
  CHECK_THROWS_WITH(client.send(request), Contains("readable on the network"));
  CHECK(server.connections() == 0);
  request.credential->allow_plain_http();
  client.send(request);
  CHECK_THAT(server.last_head(), Contains(kToken));
}

TEST_CASE("redirects are followed only on request, and at most as often") {
  Server server([](const Server::Request& request, Peer& peer) {
    if (request.head.find(" /a") != std::string::npos)
      return peer.answer(302, "moved", "Location: /b\r\n");
    if (request.head.find(" /b") != std::string::npos)
      return peer.answer(307, "", "Location: /c\r\n");
    peer.answer(200, "end");
  });
  http::Client client;
  CHECK(client.send({.url = server.url("/a")}).body == "moved");
  http::Request request{.url = server.url("/a"), .headers = {{"X-Own", "1"}}, .redirects = 2};
  request.credential = Credential(server.url()).bearer(kToken);
  CHECK(client.send(request).body == "end");
  CHECK_THAT(server.last_head(), Contains(kToken) && Contains("X-Own"));  // the same origin
  request.redirects = 1;
  CHECK(failure_of(client, request) == http::Failure::Kind::invalid);
  request.method = "POST";
  CHECK(client.send(request).status == 302);
}

TEST_CASE("neither credential nor headers follow a redirect to another origin") {
  std::string back;
  Server other([&](const Server::Request&, Peer& peer) {
    peer.answer(302, "", "Location: " + back + "\r\n");
  });
  const std::string host = GENERATE("127.0.0.1", "localhost");
  Server server([&](const Server::Request& request, Peer& peer) {
    if (request.head.starts_with("GET /back")) return peer.answer(200, "end");
    peer.answer(302, "", "Location: " + other.url("/", host) + "\r\n");
  });
  back = server.url("/back");
  http::Request request{
      .url = server.url(), .headers = {{"X-Signature", "canary-header"}}, .redirects = 5};
  const bool is_basic = GENERATE(true, false);
  request.credential = Credential(server.url());
  if (is_basic)
    request.credential->basic("user", "canary-password");
  else
    request.credential->bearer(kToken);
  CHECK(http::Client().send(request).body == "end");
  REQUIRE(server.requests().size() == 2);
  CHECK_THAT(server.requests()[0].head, Contains("Authorization") && Contains("canary-header"));
  // The second request to the first server was chosen by the other one.
  for (const std::string& head : {other.last_head(), server.last_head()})
    CHECK_THAT(head, Contains("GET /") && !Contains("Authorization") && !Contains("canary"));
}

TEST_CASE("redirects to other schemes and with logins are failures") {
  Server target(ok);
  for (const std::string location :
       {std::string("file:///etc/passwd"), std::string("ftp://127.0.0.1/"),
        "http://user:pw@127.0.0.1:" + std::to_string(target.port())}) {
    Server server([&](const Server::Request&, Peer& peer) {
      peer.answer(302, "", "Location: " + location + "\r\n");
    });
    http::Client client;
    CHECK(failure_of(client, {.url = server.url(), .redirects = 5}) ==
          http::Failure::Kind::invalid);
  }
  CHECK(target.requests().empty());
}

TEST_CASE("a proxy is used by the usual variables, but not for loopback") {
  Server proxy([](const Server::Request& request, Peer& peer) {
    if (request.head.starts_with("CONNECT")) return peer.answer(407, "", "X-Proxy: 1\r\n");
    peer.answer(200, "from proxy");
  });
  const Variable http_proxy("http_proxy", proxy.url()), https_proxy("https_proxy", proxy.url());
  Server server(ok);
  http::Client client;
  CHECK(client.send({.url = "http://unknown.invalid/"}).body == "from proxy");
  CHECK_THAT(proxy.last_head(), Contains("GET http://unknown.invalid/"));
  const size_t seen = proxy.requests().size();
  http::Request request{.url = server.url(), .credential = Credential(server.url()).bearer(kToken)};
  CHECK(client.send(request).body == "ok");
  CHECK(proxy.requests().size() == seen);
  request = {.url = "https://unknown.invalid/", .headers = {{"X-Secret", "canary-header"}}};
  request.credential = Credential(request.url).bearer(kToken);
  CHECK(failure_of(client, request) == http::Failure::Kind::broken);
  CHECK_THAT(proxy.last_head(), Contains("CONNECT unknown.invalid:443") && !Contains("canary"));
  const Variable no_proxy("no_proxy", "0.0.0.0");
  CHECK(client.send({.url = server.url("/", "0.0.0.0")}).body == "ok");
}

TEST_CASE("secrets that a server repeats do not get into messages") {
  Server server([](const Server::Request& request, Peer& peer) {
    peer.answer(500, request.head.substr(request.head.find("Authorization")));
  });
  http::Client client;
  http::Request request{.url = server.url()};
  request.credential = Credential(server.url()).basic("user", "canary-password");
  http::Response response = client.send(request);
  REQUIRE_THAT(response.body, Contains("dXNlcjpjYW5hcnktcGFzc3dvcmQ="));
  CHECK_THAT(response.excerpt(), Contains("Basic [credential]") && !Contains("dXNlcj"));
  request.credential = Credential(server.url()).bearer("canary-token-echoed");
  response = client.send(request);
  REQUIRE_THAT(response.body, Contains("canary-token-echoed"));
  CHECK_THAT(response.excerpt(), Contains("Bearer [token]"));
  CHECK(dsv3::printable("password canary-password") == "password [password]");
}

TEST_CASE("credentials that HTTP cannot transport are rejected without being shown") {
  Credential credential("https://host");
  CHECK_THROWS_WITH(credential.bearer("canary\r\nX: y"),
                    Contains("control characters") && !Contains("canary"));
  CHECK_THROWS_WITH(credential.bearer(""), Contains("empty"));
  CHECK_THROWS_WITH(credential.basic("a:b", "canary"), Contains("colon") && !Contains("canary"));
  CHECK_THROWS_WITH(credential.basic("user", "canary\n"), !Contains("canary"));
  const std::string url = "http://127.0.0.1:1";
  http::Request request{
      .url = url, .credential = Credential(url).bearer("tokentoken").basic("user", "password")};
  CHECK_THROWS_WITH(http::Client().send(request), Contains("both a password and a token"));
}
