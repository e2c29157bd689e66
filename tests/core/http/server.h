// A server for tests on a free loopback port. It sends whatever bytes a test chooses.
#pragma once

#include <atomic>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <netinet/in.h>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <vector>

/// Opens a listening socket on a free port of all addresses. Returns the socket and the port.
inline std::pair<int, int> listen_on_free_port(int backlog = 64) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(socket, generic, size) != 0 || ::listen(socket, backlog) != 0 ||
      ::getsockname(socket, generic, &size) != 0)
    throw std::runtime_error("cannot listen");
  return {socket, ntohs(address.sin_port)};
}

/// The connection of a request.
class Peer {
 public:
  explicit Peer(int socket) : socket_(socket) {}
  /// Returns false if the client has closed the connection.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(sent);
    }
    return true;
  }
  /// Sends a complete response.
  void answer(int status, const std::string& body, const std::string& headers = "") {
    send("HTTP/1.1 " + std::to_string(status) + " X\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  void wait_until_closed() {  ///< by the client
    char byte = 0;
    while (::recv(socket_, &byte, 1, 0) > 0) continue;
  }
  void close() { closed = true; }  ///< after the handler returns
  /// Makes the client's next send() fail at once.
  void reset() {
    const linger now{1, 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    closed = true;
  }
  bool closed = false;

 private:
  int socket_;
};

class Server {
 public:
  struct Request {
    std::string head;  ///< request line and headers, or the first bytes of a TLS handshake
    std::string body;  ///< the first MiB
    uint64_t body_bytes = 0;
  };
  using Handler = std::function<void(const Request&, Peer&)>;

  /// `before_body` runs when the head has arrived.
  explicit Server(Handler handler, Handler before_body = {})
      : handler_(std::move(handler)), before_body_(std::move(before_body)) {
    std::tie(socket_, port_) = listen_on_free_port();
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~Server() {
    stopping_ = true;
    ::shutdown(socket_, SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int connection : sockets_) ::shutdown(connection, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
    for (const int connection : sockets_) ::close(connection);
    ::close(socket_);
  }

  std::string url(const std::string& path = "/", const std::string& host = "127.0.0.1") const {
    return "http://" + host + ":" + std::to_string(port_) + path;
  }
  int port() const { return port_; }
  int connections() const { return connections_; }
  std::vector<Request> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  std::string last_head() {
    const std::lock_guard lock(mutex_);
    return requests_.empty() ? "" : requests_.back().head;
  }

 private:
  void accept_all() {
    while (!stopping_) {
      const int connection = ::accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
      if (connection < 0) continue;
      ++connections_;
      const std::lock_guard lock(mutex_);
      sockets_.push_back(connection);
      threads_.emplace_back([this, connection] { serve(connection); });
    }
  }

  void serve(int socket) {
    std::string received;
    Peer peer(socket);
    Request request;
    while (!peer.closed && read_request(socket, received, request, peer)) {
      {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
      }
      handler_(request, peer);
    }
    // The destructor closes the socket, unless it must be reset now.
    linger value{};
    socklen_t size = sizeof value;
    ::getsockopt(socket, SOL_SOCKET, SO_LINGER, &value, &size);
    const std::lock_guard lock(mutex_);
    if (value.l_onoff == 0) {
      ::shutdown(socket, SHUT_RDWR);
    } else {
      std::erase(sockets_, socket);
      ::close(socket);
    }
  }

  bool read_request(int socket, std::string& received, Request& request, Peer& peer) {
    size_t end = 0;
    while ((end = received.find("\r\n\r\n")) == received.npos)
      if (!read_more(socket, received))
        return false;
      else if (received[0] == '\x16')
        break;  // TLS
    request = {received.substr(0, end), "", 0};
    received.erase(0, end == received.npos ? end : end + 4);
    if (before_body_) before_body_(request, peer);
    if (request.head.find("Expect: 100") != std::string::npos)
      peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    const size_t length = request.head.find("Content-Length: ");
    uint64_t left = length == std::string::npos
                        ? 0
                        : std::strtoull(request.head.c_str() + length + 16, nullptr, 10);
    request.body_bytes = left;
    while (!peer.closed && left > 0) {
      if (received.empty() && !read_more(socket, received)) return false;
      const size_t count = std::min<uint64_t>(left, received.size());
      if (request.body.size() < 1 << 20) request.body += received.substr(0, count);
      received.erase(0, count);
      left -= count;
    }
    return !peer.closed;
  }

  static bool read_more(int socket, std::string& received) {
    char buffer[65536];
    const ssize_t count = ::recv(socket, buffer, sizeof buffer, 0);
    if (count > 0) received.append(buffer, count);
    return count > 0;
  }

  Handler handler_, before_body_;
  int socket_ = -1, port_ = 0;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> connections_ = 0;
  std::mutex mutex_;
  std::vector<Request> requests_;
  std::vector<int> sockets_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};
