// Certificates and TLS servers for tests, made with the openssl command.
#pragma once

#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <spawn.h>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "core/support/temporary_folder.h"

/// Certificates for localhost, in PEM format, each with its key in NAME.key:
///   ca.pem: a certificate authority    trusted.pem: issued by it     expired.pem: issued by it,
///   for yesterday own.pem: self-signed               client.pem: issued by it, for a client
class Certificates {
 public:
  Certificates() {
    request("ca", "-x509 -days 2 -addext basicConstraints=critical,CA:TRUE");
    request("own", "-x509 -days 2 -addext subjectAltName=DNS:localhost");
    for (const auto& [name, days] :
         {std::pair("trusted", "2"), {"client", "2"}, {"expired", "-1"}}) {
      request(name, "-new -addext subjectAltName=DNS:localhost");
      run("openssl x509 -req -in " + file(name) + " -CA " + file("ca") + " -CAkey " +
          path("ca.key") + " -copy_extensions copy -days " + days + " -out " + path("signed"));
      std::filesystem::rename(path("signed"), file(name));
    }
  }
  std::string path(const std::string& name) const { return folder_ / name; }
  std::string file(const std::string& name) const { return path(name + ".pem"); }

 private:
  void request(const std::string& name, const std::string& options) {
    run("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + name +
        " -keyout " + path(name + ".key") + " -out " + file(name) + " " + options);
  }
  static void run(const std::string& command) {
    if (std::system((command + " 2>/dev/null").c_str()) != 0) throw std::runtime_error(command);
  }
  TemporaryFolder folder_;
};

/// A process of `openssl s_server`. With -www it answers each GET with a page about the connection,
/// with -HTTP it sends the file that the path names, which must be a complete response.
class TlsServer {
 public:
  TlsServer(const Certificates& certificates, const std::string& certificate,
            const std::vector<std::string>& options = {"-www"}) {
    std::vector<std::string> words{"openssl", "s_server",
                                   "-accept", "127.0.0.1:0",
                                   "-cert",   certificates.file(certificate),
                                   "-key",    certificates.path(certificate + ".key")};
    words.insert(words.end(), options.begin(), options.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    int output[2];
    if (::pipe2(output, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, output[1], 1);
    ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    ::posix_spawn_file_actions_addchdir_np(&actions, certificates.path("").c_str());
    const int error =
        ::posix_spawnp(&process_, "openssl", &actions, nullptr, arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(output[1]);
    output_ = output[0];
    if (error == 0) port_ = read_port();
    if (port_ == 0) throw std::runtime_error("openssl s_server does not start");
  }
  ~TlsServer() {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    ::close(output_);
  }
  TlsServer(const TlsServer&) = delete;
  std::string url(const std::string& host = "localhost", const std::string& path = "/") const {
    return "https://" + host + ":" + std::to_string(port_) + path;
  }

 private:
  int read_port() const {  // from the line "ACCEPT 127.0.0.1:PORT"
    std::string text;
    char c = 0;
    while (::read(output_, &c, 1) == 1) {
      text += c;
      const size_t line = text.find("ACCEPT 127.0.0.1:");
      if (c == '\n' && line != text.npos) return std::atoi(text.c_str() + line + 17);
    }
    return 0;
  }
  pid_t process_ = -1;
  int output_ = -1, port_ = 0;
};
