// What a well-behaved server and client exchange.
#include <cstdio>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/support/fs.h>
#include <dsv3/support/http.h>

#include "core/http/server.h"
#include "core/support/temporary_folder.h"

namespace http = dsv3::http;
using Catch::Contains;

namespace {

void ok(const Server::Request&, Peer& peer) {
  peer.answer(200, "ok");
}

http::Failure::Kind failure_of(const http::Request& request) {
  http::Client client;
  try {
    client.send(request);
  } catch (const http::Failure& failure) {
    return failure.kind();
  }
  throw std::runtime_error("the request succeeded");
}

/// Answers ranges of the alphabet as a file server does.
void alphabet(const Server::Request& request, Peer& peer) {
  const std::string all = "abcdefghijklmnopqrstuvwxyz";
  const size_t range = request.head.find("Range: bytes=");
  if (range == std::string::npos) return peer.answer(200, all);
  unsigned first = 0, last = 25;
  std::sscanf(request.head.c_str() + range, "Range: bytes=%u-%u", &first, &last);
  if (first > 25) return peer.answer(416, "", "Content-Range: bytes */26\r\n");
  last = std::min(last, 25u);
  peer.answer(
      206, all.substr(first, last - first + 1),
      "Content-Range: bytes " + std::to_string(first) + "-" + std::to_string(last) + "/26\r\n");
}

}  // namespace

TEST_CASE("a client sends methods, headers and bodies over one connection") {
  Server server([](const Server::Request& request, Peer& peer) {
    const bool is_head = request.head.starts_with("HEAD");
    peer.send("HTTP/1.1 201 Made\r\nX-Echo: a\r\nx-echo: b\r\nContent-Length: 2\r\n\r\n");
    if (!is_head) peer.send("ok");
  });
  http::Client client;
  for (const std::string method : {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}) {
    http::Request request{.method = method, .url = server.url("/p?q=1")};
    request.headers = {{"X-Test", "value"}, {"X-Empty", ""}};
    const bool sends = method != "GET" && method != "HEAD";
    if (sends) request.json({{"key", "\xff"}});
    const http::Response response = client.send(request);
    CAPTURE(method);
    CHECK(response.status == 201);
    CHECK(response.ok());
    CHECK(response.header("x-echo") == "a");
    CHECK(response.body == (method == "HEAD" ? "" : "ok"));
    const Server::Request seen = server.requests().back();
    CHECK_THAT(seen.head, Catch::StartsWith(method + " /p?q=1 HTTP/1.1\r\n") &&
                              Contains("\r\nX-Test: value\r\nX-Empty:"));
    CHECK(seen.body == (sends ? "{\"key\":\"\uFFFD\"}" : ""));
    if (sends) CHECK_THAT(seen.head, Contains("Content-Type: application/json"));
  }
  client.send({.method = "POST", .url = server.url(), .body = "raw"});
  CHECK_THAT(server.last_head(), !Contains("Content-Type"));
  CHECK(server.requests().back().body == "raw");
  CHECK(server.connections() == 1);
}

TEST_CASE("a connection that the server closed in between is replaced") {
  Server server([](const Server::Request&, Peer& peer) {
    peer.answer(200, "ok");
    peer.close();
  });
  http::Client client;
  for (int i = 0; i < 3; ++i)
    CHECK(client.send({.method = "POST", .url = server.url(), .body = "x"}).status == 200);
  CHECK(server.connections() == 3);
}

TEST_CASE("a client can be used after a host was not found") {
  Server server(ok);
  http::Client client;
  CHECK_THROWS_AS(client.send({.url = "http://no-such-host.invalid/"}), http::Failure);
  CHECK(client.send({.url = server.url()}).status == 200);
}

TEST_CASE("clients in several threads start at the same time") {
  Server server(ok);
  std::atomic<int> answers = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      http::Client client;
      for (int k = 0; k < 20; ++k) answers += client.send({.url = server.url()}).status == 200;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(answers == 160);
  CHECK(server.connections() == 8);
}

TEST_CASE("programs that are started do not inherit connections") {
  Server server(ok);
  http::Client client;
  client.send({.url = server.url()});
  int sockets = 0;
  for (int fd = 3; fd < 256; ++fd) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    // libcurl's own pair of UNIX sockets leads nowhere.
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        address.ss_family == AF_UNIX)
      continue;
    ++sockets;
    CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
  }
  CHECK(sockets >= 3);  // listener, server side, client side
}

TEST_CASE("a file is sent with its length, and not read into memory") {
  TemporaryFolder folder;
  constexpr uint64_t kSize = uint64_t{192} << 20;
  put(folder / "file", "start");
  std::filesystem::resize_file(folder / "file", kSize);  // sparse
  Server server(ok);
  http::Client client;
  rusage before{}, after{};
  ::getrusage(RUSAGE_SELF, &before);
  http::Request request{.method = "PUT", .url = server.url(), .body_file = folder / "file"};
  REQUIRE(client.send(request).status == 200);
  ::getrusage(RUSAGE_SELF, &after);
  CHECK(after.ru_maxrss - before.ru_maxrss < 64 << 10);  // KiB
  const Server::Request seen = server.requests().back();
  CHECK(seen.body_bytes == kSize);
  CHECK(seen.body.starts_with(std::string("start\0\0", 7)));
  CHECK_THAT(seen.head,
             Contains("Content-Length: " + std::to_string(kSize)) && !Contains("chunked"));

  put(folder / "empty", "");
  request.body_file = folder / "empty";
  REQUIRE(client.send(request).status == 200);
  CHECK_THAT(server.last_head(), Contains("Content-Length: 0"));
}

TEST_CASE("a file that cannot be sent is an error that names it") {
  TemporaryFolder folder;
  put(folder / "file", std::string(4 << 20, 'x'));
  Server server(ok, [&](const Server::Request&, Peer&) {
    std::filesystem::resize_file(folder / "file", 1 << 20);
  });
  http::Client client;
  const auto sends = [&](const std::string& name) {
    client.send({.method = "PUT", .url = server.url(), .body_file = folder / name});
  };
  CHECK_THROWS_WITH(sends("none"),
                    Contains((folder / "none").string()) && Contains("No such file"));
  CHECK_THROWS_WITH(sends(""), Contains("not a regular file"));
  CHECK_THROWS_WITH(sends("file"), Contains("became smaller"));
  CHECK(server.requests().empty());
}

TEST_CASE("ranges are returned exactly, or not at all") {
  Server server(alphabet);
  http::Client client;
  CHECK(client.send({.url = server.url(), .range = http::Range{2, 4}}).body == "cde");
  CHECK(client.send({.url = server.url(), .range = http::Range{23}}).body == "xyz");
  CHECK(client.send({.url = server.url(), .range = http::Range{23, 99}}).body == "xyz");
  CHECK(client.send({.url = server.url(), .range = http::Range{26}}).status == 416);
  CHECK_THAT(server.last_head(), Contains("Range: bytes=26-") && !Contains("Accept-Encoding"));
  std::string all = "ab";
  client.send(
      {.url = server.url(), .range = http::Range{2}, .sink = [&](auto bytes) { all += bytes; }});
  CHECK(all == "abcdefghijklmnopqrstuvwxyz");
}

TEST_CASE("answers that are not the requested range are failures") {
  const auto [status, headers] =
      GENERATE(std::pair(200, ""), std::pair(204, ""), std::pair(206, ""),
               std::pair(206, "Content-Range: bytes 1-3/9\r\n"),
               std::pair(206, "Content-Range: bytes 2-5/9\r\n"),
               std::pair(206, "Content-Range: bytes 2-3/9\r\n"),
               std::pair(206, "Content-Range: bytes 2-\r\n"),
               std::pair(206, "Content-Range: bytes 2-4/9\r\nContent-Encoding: gzip\r\n"));
  CAPTURE(status, headers);
  Server server([&](const Server::Request&, Peer& peer) { peer.answer(status, "cde", headers); });
  std::string received;
  http::Request request{.url = server.url(), .range = http::Range{2, 4}};
  CHECK(failure_of(request) == http::Failure::Kind::invalid);
  Server unasked([](const Server::Request&, Peer& peer) { peer.answer(206, "part"); });
  CHECK(failure_of({.url = unasked.url()}) == http::Failure::Kind::invalid);
}

TEST_CASE("a sink receives successful bodies only, and may end the transfer") {
  int status = 200;
  Server server([&](const Server::Request&, Peer& peer) { peer.answer(status, "text"); });
  http::Client client;
  std::string received;
  http::Request request{.url = server.url(), .sink = [&](auto bytes) { received += bytes; }};
  CHECK(client.send(request).body.empty());
  CHECK(received == "text");
  status = 404;
  CHECK(client.send(request).body == "text");
  CHECK(received == "text");
  status = 200;
  request.sink = [](auto) { throw dsv3::Error("disk full"); };
  CHECK_THROWS_WITH(client.send(request), "disk full");
  CHECK(client.send({.url = server.url()}).body == "text");  // the client remains usable
}

TEST_CASE("retry-after is read as seconds or a date") {
  const auto wait = [](const std::string& value, const std::string& date = "") {
    http::Response response;
    response.headers = {{"retry-after", value}, {"date", date}};
    const auto seconds = http::retry_after(response);
    return seconds ? static_cast<long>(seconds->count()) : -1;
  };
  CHECK(wait("7") == 7);
  CHECK(wait("0") == 0);
  CHECK(wait("99999999999999999999") == 86400);
  CHECK(wait("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:07 GMT") == 30);
  CHECK(wait("Sun, 06 Nov 1994 08:49:37 GMT") == 0);
  CHECK(wait("Fri, 31 Dec 2100 00:00:00 GMT") == 86400);
  CHECK(wait("-5") == -1);
  CHECK(wait("soon") == -1);
  CHECK(wait("") == -1);
  CHECK_FALSE(http::retry_after(http::Response{}).has_value());
}

TEST_CASE("failures and statuses say whether a retry is worthwhile") {
  using enum http::Retry;
  for (const int status : {408, 429, 502, 503, 504}) CHECK(http::retry(status) == yes);
  CHECK(http::retry(500) == limited);
  for (const int status : {200, 301, 400, 401, 403, 404, 413, 501, 505})
    CHECK(http::retry(status) == no);
  using Kind = http::Failure::Kind;
  for (const Kind kind : {Kind::resolve, Kind::connect, Kind::timeout, Kind::broken})
    CHECK(http::retry(http::Failure(kind, "")) == yes);
  for (const Kind kind : {Kind::tls, Kind::invalid})
    CHECK(http::retry(http::Failure(kind, "")) == limited);
  for (const Kind kind : {Kind::aborted, Kind::too_large})
    CHECK(http::retry(http::Failure(kind, "")) == no);
}

TEST_CASE("text is escaped for URLs") {
  CHECK(http::escape("a-b_c.d~1") == "a-b_c.d~1");
  CHECK(http::escape("a/b c?&=%\xc3\xa9\n") == "a%2Fb%20c%3F%26%3D%25%C3%A9%0A");
}

TEST_CASE("invalid requests are errors before anything is sent") {
  Server server(ok);
  http::Client client;
  const auto sent = [&](http::Request request) {
    if (request.url.empty()) request.url = server.url();
    client.send(request);
  };
  CHECK_THROWS_WITH(sent({.method = "BREW"}), Contains("unknown HTTP method 'BREW'"));
  CHECK_THROWS_WITH(sent({.method = "GET", .body = "x"}), Contains("cannot have a body"));
  for (const std::string url :
       {"file:///etc/passwd", "ftp://host/", "host", "http://", "http://h/\n"})
    CHECK_THROWS_WITH(sent({.url = url}), Contains("invalid URL"));
  for (const std::string name : {"Authorization", "cookie", "HOST", "Range", "Content-Length"})
    CHECK_THROWS_WITH(sent({.headers = {{name, "x"}}}), Contains("cannot be set directly"));
  CHECK_THROWS_WITH(sent({.headers = {{"X\r\nY", "x"}}}), Contains("invalid HTTP header"));
  CHECK_THROWS_WITH(sent({.headers = {{"X", "x\r\nAuthorization: y"}}}),
                    Contains("invalid HTTP header"));
  CHECK(server.requests().empty());
}
