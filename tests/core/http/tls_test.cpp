// Which TLS servers are trusted.
#include <fstream>

#include <catch2/catch.hpp>

#include <dsv3/support/http.h>

#include "core/http/server.h"
#include "core/http/tls_server.h"

namespace http = dsv3::http;
using Catch::Contains;
using Kind = http::Failure::Kind;

namespace {

const Certificates& certificates() {
  static const Certificates instance;
  return instance;
}

http::Tls trusting(const std::string& name) {
  return {.ca_file = certificates().file(name)};
}

http::Failure failure_of(const http::Tls& tls, const http::Request& request) {
  try {
    http::Client(tls).send(request);
  } catch (const http::Failure& failure) {
    return failure;
  }
  FAIL("the request succeeded");
  throw 0;
}

}  // namespace

TEST_CASE("a server with a certificate of the CA file is trusted") {
  TlsServer server(certificates(), "trusted");
  http::Client client(trusting("ca"));
  CHECK(client.send({.url = server.url()}).status == 200);
  CHECK(client.send({.url = server.url()}).status == 200);
}

TEST_CASE("servers that cannot be verified are rejected with the reason") {
  struct Case {
    const char *certificate, *ca, *host, *reason;
  };
  const Case c = GENERATE(
      Case{"trusted", "", "localhost", "unable to get local issuer certificate"},
      Case{"trusted", "own", "localhost", "unable to get local issuer certificate"},
      Case{"own", "ca", "localhost", "self-signed certificate"},
      Case{"own", "", "localhost", "self-signed certificate"},
      Case{"expired", "ca", "localhost", "certificate has expired"},
      Case{"trusted", "ca", "127.0.0.1", "no alternative certificate subject name matches"});
  CAPTURE(c.certificate, c.ca, c.host);
  TlsServer server(certificates(), c.certificate);
  const std::string url = server.url(c.host);
  http::Request request{.url = url, .credential = http::Credential(url).bearer("canary-token")};
  const http::Failure failure = failure_of(*c.ca ? trusting(c.ca) : http::Tls{}, request);
  CHECK(failure.kind() == Kind::tls);
  CHECK_THAT(failure.what(), Contains(c.reason));
  CHECK(http::Client({.insecure = true}).send({.url = url}).status == 200);  // only on request
}

TEST_CASE("a self-signed certificate can be its own CA") {
  TlsServer server(certificates(), "own");
  CHECK(http::Client(trusting("own")).send({.url = server.url()}).status == 200);
}

TEST_CASE("a missing CA file is a failure that names it") {
  CHECK_THAT(failure_of({.ca_file = "/none.pem"}, {.url = "https://localhost:1"}).what(),
             Contains("localhost"));
  TlsServer server(certificates(), "trusted");
  const http::Failure failure = failure_of({.ca_file = "/none.pem"}, {.url = server.url()});
  CHECK(failure.kind() == Kind::tls);
  CHECK_THAT(failure.what(), Contains("/none.pem"));
}

TEST_CASE("old versions of TLS are rejected") {
  const std::string version = GENERATE("-tls1", "-tls1_1");
  TlsServer server(certificates(), "trusted", {"-www", version, "-cipher", "ALL:@SECLEVEL=0"});
  CHECK(failure_of(trusting("ca"), {.url = server.url()}).kind() == Kind::tls);
}

TEST_CASE("a server that does not speak TLS is a TLS failure") {
  Server plain([](const Server::Request& request, Peer& peer) {
    if (request.head[0] == '\x16') peer.answer(400, "plain http");
    peer.close();
  });
  Server closes([](const Server::Request&, Peer& peer) { peer.close(); });
  const auto kind_of = [](Server& server) {
    std::string url = server.url();
    url.insert(4, "s");
    return failure_of({}, {.url = url}).kind();
  };
  CHECK(kind_of(plain) == Kind::tls);
  // A load balancer without servers does this, and recovers.
  CHECK(kind_of(closes) == Kind::broken);
}

TEST_CASE("a client certificate is presented to its origin only") {
  TlsServer server(
      certificates(), "trusted",
      {"-www", "-Verify", "1", "-verify_return_error", "-CAfile", certificates().file("ca")});
  http::Request request{.url = server.url()};
  CHECK(failure_of(trusting("ca"), request).kind() == Kind::tls);
  request.credential = http::Credential(server.url());
  request.credential->certificate(certificates().file("client"), certificates().path("client.key"));
  CHECK(http::Client(trusting("ca")).send(request).status == 200);
  // Certificate and key in one file.
  std::ofstream(certificates().file("both"))
      << get(certificates().file("client")) << get(certificates().path("client.key"));
  request.credential->certificate(certificates().file("both"));
  CHECK(http::Client(trusting("ca")).send(request).status == 200);

  Server redirects([&](const Server::Request&, Peer& peer) {
    peer.answer(302, "", "Location: " + server.url() + "\r\n");
  });
  request.url = redirects.url();
  request.redirects = 1;
  request.credential = http::Credential(request.url);
  request.credential->certificate(certificates().file("both"));
  CHECK(failure_of(trusting("ca"), request).kind() == Kind::tls);
}

TEST_CASE("a redirect from https to http is not followed") {
  Server target([](const Server::Request&, Peer& peer) { peer.answer(200, "ok"); });
  std::ofstream(certificates().path("redirect"))
      << "HTTP/1.1 302 X\r\nLocation: " << target.url() << "\r\nContent-Length: 0\r\n\r\n";
  TlsServer server(certificates(), "trusted", {"-HTTP"});
  http::Request request{.url = server.url("localhost", "/redirect")};
  CHECK(http::Client(trusting("ca")).send(request).status == 302);
  request.redirects = 1;
  const http::Failure failure = failure_of(trusting("ca"), request);
  CHECK(failure.kind() == Kind::invalid);
  CHECK_THAT(failure.what(), Contains("from https to http"));
  CHECK(target.requests().empty());
}
