#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <optional>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <dsv3/runtime/conformance.h>
#include <dsv3/sdk/error.h>

namespace dsv3::conformance {
namespace {

using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

// A child of this program that runs checks; its whole process group ends with this object.
class Child {
 public:
  Child(const Request& request, const std::string& component, size_t first) {
    int ends[2];
    if (::pipe(ends) != 0) throw Error(std::string("cannot make a pipe: ") + std::strerror(errno));
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
    if (pid_ < 0) throw Error(std::string("cannot start a process: ") + std::strerror(errno));
    if (pid_ == 0) become_child(request, arguments.data());
    ::close(ends[1]);
    report_ = ends[0];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    ::kill(-pid_, SIGKILL);
    while (::waitpid(-1, nullptr, 0) > 0) {  // orphans of the child come to us
    }
    ::close(report_);
  }

  /// The next message; nullopt when the child's end of the pipe is closed. `timed_out` is set when
  /// nothing came within the limit.
  std::optional<Json> read(std::chrono::seconds limit, bool& timed_out) {
    const auto end = Clock::now() + limit;
    timed_out = false;
    for (;;) {
      if (const size_t newline = buffer_.find('\n'); newline != std::string::npos) {
        Json message = Json::parse(buffer_.substr(0, newline), nullptr, false);
        buffer_.erase(0, newline + 1);
        return message;
      }
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
      pollfd waiting{report_, POLLIN, 0};
      const int ready = ::poll(&waiting, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
      if (ready < 0 && errno == EINTR) continue;
      if (ready == 0) {
        // A process that the component left behind may hold the pipe open after the child's end.
        timed_out = !ended();
        return std::nullopt;
      }
      char bytes[4096];
      const ssize_t got = ::read(report_, bytes, sizeof bytes);
      if (got <= 0) return std::nullopt;
      buffer_.append(bytes, static_cast<size_t>(got));
    }
  }

  /// How the process ended, or "" for exit code 0; kills it when it does not end in time.
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
    if (WEXITSTATUS(status_) != 0)
      return "it ends the process with exit code " + std::to_string(WEXITSTATUS(status_));
    return "";
  }

  /// Whether processes that the child started are still there after its end.
  bool left_processes() {
    int status;
    const pid_t other = ::waitpid(-1, &status, WNOHANG);
    return other == 0 || other > 0;
  }

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

  pid_t pid_ = -1;
  int report_ = -1, status_ = 0;
  bool ended_ = false;
  std::string buffer_;
};

[[noreturn]] void refuse(const Json& message) {
  throw Error(message["refused"].get<std::string>(),
              static_cast<ExitCode>(message["code"].get<int>()));
}

// Runs one child; returns how many checks it finished or died in, and whether it came to the end.
class ComponentRun {
 public:
  ComponentRun(const Request& request, std::string component,
               const std::function<void(const Result&)>& on_result)
      : request_(request), component_(std::move(component)), on_result_(on_result) {}

  int broken() const { return broken_; }

  void run() {
    while (!one_child()) {
    }
  }

 private:
  // True when all checks have been seen.
  bool one_child() {
    Child child(request_, component_, seen_);
    std::string check, promise;
    for (;;) {
      bool timed_out = false;
      const std::optional<Json> message = child.read(request_.time_limit, timed_out);
      if (!message || message->is_discarded()) {
        const std::string why =
            timed_out ? "it is not done after " + std::to_string(request_.time_limit.count()) + " s"
                      : child.wait(std::chrono::seconds(5));
        return died(check, promise, why);
      }
      if (message->contains("refused")) refuse(*message);
      if (message->contains("begin")) {
        check = (*message)["begin"];
        promise = (*message)["promise"];
      } else if (message->contains("end")) {
        ++seen_;
        report(check, promise, (*message)["error"]);
        check.clear();
      } else if (message->contains("done")) {
        finish(child);
        return true;
      }
    }
  }

  bool died(const std::string& check, const std::string& promise, const std::string& why) {
    const std::string text = why.empty() ? "it ends the process with exit code 0" : why;
    if (check.empty()) {  // between checks, or before the first
      report("process", "leaves the process to the host", text);
      return true;
    }
    ++seen_;
    report(check, promise, text);
    return false;
  }

  void finish(Child& child) {
    std::string text = child.wait(std::min(request_.time_limit, std::chrono::seconds(20)));
    if (text.empty() && child.left_processes()) text = "it leaves processes behind";
    report("process", "lets the process end, and leaves none behind", text);
  }

  void report(const std::string& check, const std::string& promise, const std::string& error) {
    if (!error.empty()) ++broken_;
    on_result_({component_, check, promise, error.empty(), error});
  }

  const Request& request_;
  std::string component_;
  const std::function<void(const Result&)>& on_result_;
  size_t seen_ = 0;
  int broken_ = 0;
};

// Files of the checks; here and not in a child, which may die.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = std::filesystem::temp_directory_path() / "dsv3-check-XXXXXX";
    if (!::mkdtemp(name.data()))
      throw Error("cannot make a folder like " + name + ": " + std::strerror(errno) +
                  "; set TMPDIR to a folder that can be written to");
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Loads the library in a child. Returns what it provides; none = it could not be loaded, and
// `error` says why.
std::vector<std::string> load_in_child(const Request& request, std::string& error) {
  Child child(request, "", 0);
  bool timed_out = false;
  const std::optional<Json> message = child.read(request.time_limit, timed_out);
  if (timed_out) {
    error = "loading it is not done after " + std::to_string(request.time_limit.count()) + " s";
  } else if (!message || message->is_discarded()) {
    error = child.wait(std::chrono::seconds(5));
    if (error.empty()) error = "it ends the process with exit code 0";
    error = "while it is loaded, " + error;
  } else if (message->contains("refused")) {
    error = (*message)["refused"];
  } else {
    return (*message)["provides"];
  }
  return {};
}

}  // namespace

int check_library(const Request& asked, const std::function<void(const Result&)>& on_result) {
  const TemporaryFolder folder;
  Request request = asked;
  request.folder = folder.path();
  if (!std::filesystem::is_regular_file(request.library))
    throw Error("there is no plugin library " + request.library.string(), ExitCode::plugin);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  std::string error;
  const std::vector<std::string> provided = load_in_child(request, error);
  on_result({"", "load", "loads, and registers what its stamp says", error.empty(), error});
  if (!error.empty()) return 1;
  int broken = 0;
  for (const std::string& component : provided) {
    if (!request.component.empty() && component != request.component) continue;
    ComponentRun run(request, component, on_result);
    run.run();
    broken += run.broken();
  }
  if (!request.component.empty() &&
      std::find(provided.begin(), provided.end(), request.component) == provided.end())
    throw Error("the library " + request.library.string() + " has no " + request.component,
                ExitCode::usage);
  return broken;
}

}  // namespace dsv3::conformance
