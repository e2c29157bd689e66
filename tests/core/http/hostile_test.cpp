// What broken and hostile servers send.
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/runtime/printable.h>
#include <dsv3/support/http.h>

#include "core/http/server.h"
#include "core/support/temporary_folder.h"

namespace http = dsv3::http;
using Catch::Contains;
using Kind = http::Failure::Kind;

namespace {

/// Sends the request and returns the failure, which must occur.
http::Failure failure_of(const http::Request& request) {
  http::Client client;
  try {
    client.send(request);
  } catch (const http::Failure& failure) {
    return failure;
  }
  FAIL("the request succeeded");
  throw 0;
}

/// Answers every request with these bytes and closes the connection.
struct Sends : Server {
  explicit Sends(const std::string& bytes)
      : Server([bytes](const Request&, Peer& peer) {
          peer.send(bytes);
          peer.close();
        }) {}
};

/// Repeats `bytes` after `start` until the client closes the connection.
struct Repeats : Server {
  Repeats(const std::string& start, const std::string& bytes, int milliseconds = 0)
      : Server([=](const Request&, Peer& peer) {
          peer.send(start);
          while (peer.send(bytes))
            std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
        }) {}
};

const std::string kOk = "HTTP/1.1 200 OK\r\n";

int unused_port() {
  const auto [socket, port] = listen_on_free_port();
  ::close(socket);
  return port;
}

}  // namespace

TEST_CASE("connections that fail are described by their cause") {
  const std::string refused = "http://127.0.0.1:" + std::to_string(unused_port()) + "/a?secret=1#x";
  const http::Failure failure = failure_of({.url = refused});
  CHECK(failure.kind() == Kind::connect);
  CHECK_THAT(failure.what(), Catch::StartsWith("request 'GET http://127.0.0.1:") &&
                                 Contains("/a' failed: cannot connect: ") &&
                                 Contains("server is running") && !Contains("secret"));
  // An empty label cannot be resolved, whatever the network.
  CHECK(failure_of({.url = "http://a..invalid/"}).kind() == Kind::resolve);
}

TEST_CASE("a connection that is not accepted times out") {
  const auto [socket, port] = listen_on_free_port(0);
  std::vector<int> queued;  // fill the queue
  for (int i = 0; i < 4; ++i) {
    queued.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::connect(queued.back(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  http::Request request{.url = "http://127.0.0.1:" + std::to_string(port)};
  request.timeouts.connect = std::chrono::milliseconds(200);
  CHECK(failure_of(request).kind() == Kind::timeout);
  for (const int fd : queued) ::close(fd);
  ::close(socket);
}

TEST_CASE("silent and slow servers time out") {
  Server silent([](const Server::Request&, Peer& peer) { peer.wait_until_closed(); });
  Repeats drip(kOk + "Content-Length: 1000000\r\n\r\n", "x", 50);
  Repeats headers(kOk, "X-Drip: x\r\n", 50);
  for (const Server* server : std::initializer_list<const Server*>{&silent, &drip, &headers}) {
    http::Request request{.url = server->url()};
    request.timeouts.total = std::chrono::milliseconds(300);
    CHECK(failure_of(request).kind() == Kind::timeout);
    request.timeouts.total = std::chrono::milliseconds(0);
    request.timeouts.stall = std::chrono::seconds(1);
    request.timeouts.bytes_per_second = 10'000;
    CHECK(failure_of(request).kind() == Kind::timeout);
  }
}

TEST_CASE("the total time includes redirects") {
  Server server([](const Server::Request&, Peer& peer) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    peer.answer(302, "", "Location: /\r\n");
  });
  http::Request request{.url = server.url(), .redirects = 100};
  request.timeouts.total = std::chrono::milliseconds(450);
  CHECK(failure_of(request).kind() == Kind::timeout);
}

TEST_CASE("a stop token ends a transfer within about a second") {
  const bool is_silent = GENERATE(true, false);
  Server server([=](const Server::Request&, Peer& peer) {
    if (is_silent) return peer.wait_until_closed();
    peer.send(kOk + "Content-Length: 1000000\r\n\r\n");
    while (peer.send("x")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  std::stop_source source;
  std::thread stopper([&] {
    while (server.last_head().empty()) std::this_thread::yield();
    source.request_stop();
  });
  const auto start = std::chrono::steady_clock::now();
  CHECK(failure_of({.url = server.url(), .stop = source.get_token()}).kind() == Kind::aborted);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(4));
  stopper.join();
  CHECK(failure_of({.url = server.url(), .stop = source.get_token()}).kind() == Kind::aborted);
  CHECK(server.requests().size() == 1);
}

TEST_CASE("headers are limited") {
  const auto [start, repeated] = GENERATE(
      std::pair(kOk, std::string("X: 0123456789\r\n")),
      std::pair(kOk + "X: ", std::string(1000, 'x')),
      std::pair(std::string(), std::string("HTTP/1.1 100 Continue\r\n\r\n")),
      std::pair(kOk + "Transfer-Encoding: chunked\r\n\r\n0\r\n", std::string("X: 0123456789\r\n")));
  CAPTURE(start);
  Repeats server(start, repeated);
  http::Request request{.url = server.url()};
  CHECK(failure_of(request).kind() == Kind::too_large);
  Sends small(kOk + "X: " + std::string(500, 'x') + "\r\nContent-Length: 0\r\n\r\n");
  request.url = small.url();
  request.limits.headers = 500;
  CHECK_THAT(failure_of(request).what(), Contains("limit of 500 bytes"));
  request.limits.headers = 600;
  CHECK(http::Client().send(request).status == 200);
}

TEST_CASE("bodies are limited") {
  const auto [start, repeated] =
      GENERATE(std::pair(kOk + "\r\n", std::string(10'000, 'x')),
               std::pair(kOk + "Content-Length: 99999999999\r\n\r\n", std::string(10'000, 'x')),
               std::pair("HTTP/1.1 500 X\r\n\r\n", std::string(10'000, 'x')),
               std::pair(kOk + "Transfer-Encoding: chunked\r\n\r\n",
                         "2710\r\n" + std::string(10'000, 'x') + "\r\n"));
  CAPTURE(start);
  Repeats server(start, repeated);
  const http::Failure failure = failure_of({.url = server.url()});
  CHECK(failure.kind() == Kind::too_large);
  CHECK_THAT(failure.what(), Contains("limit of 8388608 bytes"));
  uint64_t received = 0;
  http::Request request{.url = server.url(), .sink = [&](auto bytes) { received += bytes.size(); }};
  request.limits.body = 1'000'000;
  CHECK(failure_of(request).kind() == Kind::too_large);
  CHECK(received <= 1'000'000);
}

TEST_CASE("the error page of a large download has its own limit") {
  Repeats server("HTTP/1.1 500 X\r\n\r\n", std::string(10'000, 'x'));
  http::Request request{.url = server.url(), .sink = [](auto) {}};
  request.limits.body = uint64_t{1} << 40;
  CHECK(failure_of(request).kind() == Kind::too_large);
}

TEST_CASE("compressed bodies are limited after decompression") {
  TemporaryFolder folder;
  const std::string file = folder / "zeros.gz";
  REQUIRE(std::system(("head -c 100M /dev/zero | gzip -1 > " + file).c_str()) == 0);
  const std::string bomb = get(file);
  REQUIRE(std::system(("printf text | gzip > " + file).c_str()) == 0);
  REQUIRE(bomb.size() < 1 << 20);
  Server server([&](const Server::Request& request, Peer& peer) {
    peer.answer(200, request.head.starts_with("GET /bomb") ? bomb : get(file),
                "Content-Encoding: gzip\r\n");
  });
  http::Request request{.url = server.url("/bomb")};
  request.limits.body = 2 << 20;  // the compressed size is within it
  CHECK(failure_of(request).kind() == Kind::too_large);
  CHECK(http::Client().send({.url = server.url()}).body == "text");
  const http::Failure stored = failure_of({.url = server.url(), .sink = [](auto) {}});
  CHECK(stored.kind() == Kind::invalid);
  CHECK_THAT(stored.what(), Contains("compressed"));
  Sends broken(kOk + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nxxxx");
  CHECK(failure_of({.url = broken.url()}).kind() == Kind::invalid);
}

TEST_CASE("incomplete and malformed responses are failures") {
  const auto [kind, bytes] =
      GENERATE(std::pair(Kind::broken, std::string()),
               std::pair(Kind::broken, kOk + "Content-Length: 9\r\n\r\nshort"),
               std::pair(Kind::broken, kOk + "Transfer-Encoding: chunked\r\n\r\n5\r\nab"),
               std::pair(Kind::broken, kOk + "Transfer-Encoding: chunked\r\n\r\nZZ\r\n"),
               std::pair(Kind::invalid, std::string("220 mail server\r\n")),
               std::pair(Kind::invalid, kOk + "Content-Length: -1\r\n\r\nx"));
  CAPTURE(bytes);
  Sends server(bytes);
  CHECK(failure_of({.url = server.url()}).kind() == kind);
}

TEST_CASE("a connection that is lost while sending does not end the process") {
  Server server([](const Server::Request&, Peer&) {},
                [](const Server::Request&, Peer& peer) { peer.reset(); });
  const http::Failure failure =
      failure_of({.method = "POST", .url = server.url(), .body = std::string(16 << 20, 'x')});
  CHECK(failure.kind() == Kind::broken);
}

TEST_CASE("bytes after the end of a response are ignored") {
  Sends longer(kOk + "Content-Length: 2\r\n\r\nok and more");
  CHECK(http::Client().send({.url = longer.url()}).body == "ok");
  for (const int status : {204, 304}) {
    Sends server("HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Length: 4\r\n\r\nbody");
    const http::Response response = http::Client().send({.url = server.url()});
    CHECK(response.status == status);
    CHECK(response.body.empty());
  }
}

TEST_CASE("errors of a server are ordinary responses, quoted briefly") {
  const std::string page = "<html>\n\x1b[31m" + std::string(10'000, 'x');
  Server server([&](const Server::Request&, Peer& peer) { peer.answer(500, page); });
  const http::Response response = http::Client().send({.url = server.url("/a?token=t")});
  CHECK(response.status == 500);
  CHECK(response.body == page);
  CHECK_THAT(response.excerpt(),
             Catch::StartsWith("<html>\\n\\u001b[31mxxx") && Catch::EndsWith("x..."));
  CHECK(response.excerpt().size() < 250);
  CHECK_THAT(response.source, Catch::EndsWith("/a"));
}

TEST_CASE("JSON is limited in depth, and its errors quote nothing") {
  http::Response response;
  response.source = "GET http://host/path";
  response.body = R"({"a": [1]})";
  CHECK(response.json()["a"][0] == 1);
  response.body = std::string(100'000, '[');
  CHECK_THROWS_WITH(response.json(),
                    Contains("GET http://host/path") && Contains("deeper than 64"));
  for (const std::string body :
       {"{\"token\": \"hunter2secret", "{\"hunter2secret\":1,\"hunter2secret\":2}", "hunter2secret",
        "[\"hunter2secret\" 1]", "<html>hunter2secret", ""}) {
    response.body = body;
    CAPTURE(body);
    CHECK_THROWS_AS(response.json(), http::Failure);
    CHECK_THROWS_WITH(response.json(), Contains("at 1:") && !Contains("hunter2"));
  }
}
