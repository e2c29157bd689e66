#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/error.h>

#include "conformance/conformance.h"

namespace dsv3::conformance {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;
using OnResult = std::function<void(const Result&)>;

Error system_error(const std::string& what) {
  return Error(what + ": " + std::strerror(errno));
}

// A child process that runs checks; its whole process group ends with this object.
class Child {
 public:
  Child(const Request& request, const std::string& component, size_t first)
      : time_limit_(request.time_limit) {
    int ends[2];
    if (::pipe(ends) != 0) throw system_error("cannot create a pipe");
    ::fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    std::vector<std::string> words{"dsv3",           "plugins",
                                   "check",          request.library.string(),
                                   "--component",    component,
                                   "--child-first",  std::to_string(first),
                                   "--child-report", std::to_string(ends[1]),
                                   "--child-folder", request.folder.string()};
    for (const std::string& option : request.options) words.insert(words.end(), {"--set", option});
    for (const std::string& check : request.only) words.insert(words.end(), {"--only", check});
    words.insert(words.end(), request.plugin_words.begin(), request.plugin_words.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw system_error("cannot start a process");
    if (pid_ == 0) become_child(request, arguments.data());
    ::close(ends[1]);
    report_ = ends[0];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    ::kill(-pid_, SIGKILL);
    while (::waitpid(-1, nullptr, 0) > 0) {  // this process inherits the child's orphans
    }
    ::close(report_);
  }

  /// The next message, or {"died": why} if the child ended, or did nothing within the time limit.
  Json read() {
    const auto end = Clock::now() + time_limit_;
    for (;;) {
      if (const size_t newline = buffer_.find('\n'); newline != std::string::npos) {
        const Json message = Json::parse(buffer_.substr(0, newline), nullptr, false);
        buffer_.erase(0, newline + 1);
        return message.is_discarded() ? death() : message;
      }
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
      pollfd waiting{report_, POLLIN, 0};
      const int ready = ::poll(&waiting, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
      if (ready < 0 && errno == EINTR) continue;
      // A process that the component started may hold the pipe open after the child's end.
      if (ready == 0 && !ended())
        return {{"died", "timed out after " + std::to_string(time_limit_.count()) + " s"}};
      char bytes[4096];
      const ssize_t count = ready == 0 ? 0 : ::read(report_, bytes, sizeof bytes);
      if (count <= 0) return death();
      buffer_.append(bytes, static_cast<size_t>(count));
    }
  }

  /// How the process ended, or "" for exit code 0; kills it if it does not end in time.
  std::string wait(std::chrono::seconds limit) {
    const auto end = Clock::now() + limit;
    while (!ended() && Clock::now() < end) ::usleep(2000);
    if (!ended()) {
      ::kill(pid_, SIGKILL);
      return "it keeps the process from ending (waited " + std::to_string(limit.count()) + " s)";
    }
    if (WIFSIGNALED(status_)) {
      const int signal = WTERMSIG(status_);
      return std::string("it ends the process with SIG") + ::sigabbrev_np(signal) + " (" +
             ::strsignal(signal) + ")";
    }
    return WEXITSTATUS(status_) == 0 ? "" : exit_text();
  }

  /// Whether processes that the child started outlive it.
  bool left_processes() { return ::waitpid(-1, nullptr, WNOHANG) >= 0; }

 private:
  [[noreturn]] static void become_child([[maybe_unused]] const Request& request, char** arguments) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they reserve terabytes
    const rlimit memory{static_cast<rlim_t>(request.memory_limit),
                        static_cast<rlim_t>(request.memory_limit)};
    ::setrlimit(RLIMIT_AS, &memory);
#endif
    ::execv("/proc/self/exe", arguments);
    ::_exit(127);
  }
  bool ended() {
    if (!ended_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
    return ended_;
  }
  std::string exit_text() const {
    return "it ends the process with exit code " + std::to_string(WEXITSTATUS(status_));
  }
  Json death() {
    const std::string text = wait(std::chrono::seconds(5));
    return {{"died", text.empty() ? exit_text() : text}};
  }

  std::chrono::seconds time_limit_;
  pid_t pid_ = -1;
  int report_ = -1, status_ = 0;
  bool ended_ = false;
  std::string buffer_;
};

// Runs the component's checks in as many children as it takes. Returns the number of broken
// promises.
int check_component(const Request& request, const std::string& component,
                    const OnResult& on_result) {
  int broken = 0;
  const auto report = [&](const std::string& check, const std::string& promise,
                          const std::string& error) {
    if (!error.empty()) ++broken;
    on_result({component, check, promise, error.empty(), error});
  };
  for (size_t finished = 0;;) {
    Child child(request, component, finished);
    std::string check, promise;
    for (bool alive = true; alive;) {
      const Json message = child.read();
      if (message.contains("rejected")) {
        throw Error(message["rejected"], static_cast<ExitCode>(message["code"].get<int>()));
      } else if (message.contains("begin")) {
        check = message["begin"];
        promise = message["promise"];
      } else if (message.contains("end")) {
        ++finished;
        report(check, promise, message["error"]);
        check.clear();
      } else if (message.contains("done")) {
        std::string error = child.wait(std::min(request.time_limit, std::chrono::seconds(20)));
        if (error.empty() && child.left_processes()) error = "it leaves child processes";
        report("process", "lets the process end, and leaves no child processes", error);
        return broken;
      } else if (message.contains("died")) {
        if (check.empty()) {  // between checks, or before the first
          report("process", "leaves the process to the host", message["died"]);
          return broken;
        }
        ++finished;
        report(check, promise, message["died"]);
        alive = false;
      }
    }
  }
}

// For files of the checks; created here, because a child may die.
class TemporaryFolder {
 public:
  TemporaryFolder() : path(std::filesystem::temp_directory_path() / "dsv3-check-XXXXXX") {
    if (!::mkdtemp(path.data()))
      throw system_error("cannot create a folder like " + path +
                         " (set TMPDIR to a writable folder)");
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

// Loads the library in a child. Returns what it provides, or an empty list and why it cannot be
// loaded in `error`.
std::vector<std::string> load_in_child(const Request& request, std::string& error) {
  const Json message = Child(request, "", 0).read();
  if (message.contains("provides")) return message["provides"];
  error = message.contains("rejected")
              ? message["rejected"].get<std::string>()
              : "while it is loaded, " + message["died"].get<std::string>();
  return {};
}

}  // namespace

int check_library(const Request& original, const OnResult& on_result) {
  const TemporaryFolder folder;
  Request request = original;
  request.folder = folder.path;
  if (!std::filesystem::is_regular_file(request.library))
    throw Error("plugin library not found: " + request.library.string(), ExitCode::plugin);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  std::string error;
  const std::vector<std::string> provided = load_in_child(request, error);
  on_result({"", "load", "loads, and registers what its stamp declares", error.empty(), error});
  if (!error.empty()) return 1;
  if (!request.component.empty() &&
      std::find(provided.begin(), provided.end(), request.component) == provided.end())
    throw Error("library " + request.library.string() + " does not provide " + request.component,
                ExitCode::usage);
  int broken = 0;
  for (const std::string& component : provided)
    if (request.component.empty() || component == request.component)
      broken += check_component(request, component, on_result);
  return broken;
}

}  // namespace dsv3::conformance
