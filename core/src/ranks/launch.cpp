#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <iostream>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

#include <climits>

#include <dsv3/runtime/launch.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

#include "ranks/store.h"
#include "support/stop_signals.h"

namespace dsv3 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTerminateAfter{3}, kKillAfter{4};  // since a rank failed
constexpr size_t kKeptOutput = 64 << 10;
constexpr const char* kRunFile = "DSV3_RUN_FILE";
constexpr const char* kResumedRun = "DSV3_RESUMED_RUN";

[[noreturn]] void fail_call(const std::string& what) {
  throw Error("cannot " + what + ": " + std::strerror(errno));
}

/// A file descriptor that is closed with this object.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

/// While this object exists, signals wait until they are read from its descriptor. Threads that are
/// started then inherit this.
class Signals {
 public:
  Signals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : kStopSignals) sigaddset(&set, signal);
    for (const int signal : {SIGQUIT, SIGTSTP, SIGCHLD}) sigaddset(&set, signal);
    struct sigaction hangup {};
    sigaction(SIGHUP, nullptr, &hangup);
    if (hangup.sa_handler == SIG_IGN) sigdelset(&set, SIGHUP);  // under nohup
    ::pthread_sigmask(SIG_BLOCK, &set, &previous_);
    descriptor_ = Descriptor(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (descriptor_.number() < 0) fail_call("read signals");
  }
  ~Signals() { ::pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  int descriptor() const { return descriptor_.number(); }
  const sigset_t& previous() const { return previous_; }

  /// The next signal that arrived; 0 = none.
  int next() const {
    signalfd_siginfo info{};
    return ::read(descriptor(), &info, sizeof info) == sizeof info ? int(info.ssi_signo) : 0;
  }

 private:
  sigset_t previous_{};
  Descriptor descriptor_;
};

/// What exec needs, prepared before fork().
class Words {
 public:
  explicit Words(std::vector<std::string> words) : words_(std::move(words)) {
    for (std::string& word : words_) pointers_.push_back(word.data());
    pointers_.push_back(nullptr);
  }
  char** get() { return pointers_.data(); }

 private:
  std::vector<std::string> words_;
  std::vector<char*> pointers_;
};

std::vector<std::string> entries_of(const Environment& variables) {
  std::vector<std::string> entries;
  for (const auto& [name, value] : variables) entries.push_back(name + "=" + value);
  return entries;
}

/// This program's file. /proc/self/exe itself would make "exe" the name of the processes.
std::string program_file() {
  const std::string file = std::filesystem::read_symlink("/proc/self/exe").string();
  return ::access(file.c_str(), X_OK) == 0 ? file : "/proc/self/exe";
}

/// Calls execve() in the child. Calls nothing that is unsafe after fork().
[[noreturn]] void become_rank(const std::string& program, Words& arguments, Words& variables,
                              int input, int output, const sigset_t& signals, pid_t launcher) {
  // Outside the terminal's foreground group, a Ctrl-C reaches a rank only through the launcher.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != launcher) ::_exit(int(ExitCode::peer_lost));  // it died before prctl()
  if (input >= 0) ::dup2(input, STDIN_FILENO);
  if (output >= 0) {
    ::dup2(output, STDOUT_FILENO);
    ::dup2(output, STDERR_FILENO);
  }
  ::sigprocmask(SIG_SETMASK, &signals, nullptr);
  ::execve(program.c_str(), arguments.get(), variables.get());
  constexpr std::string_view kText = "error: cannot execute this program again\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kText.data(), kText.size());
  ::_exit(int(ExitCode::failed));
}

struct Rank {
  pid_t process = -1;
  Descriptor output;  // what it writes, for ranks other than 0
  std::string text;   // the end of it
  bool running = false;
  bool stopped_by_launcher = false;
  bool suspended = false;  // by SIGSTOP
  int status = 0;

  bool was_killed() const { return WIFSIGNALED(status); }
  int code() const { return WEXITSTATUS(status); }
  bool ended_with(ExitCode code) const { return !was_killed() && this->code() == int(code); }
  /// Whether it ended for a reason of its own, and not as asked.
  bool failed() const {
    return was_killed() ||
           !(code() == 0 || ended_with(ExitCode::preempted) || ended_with(ExitCode::interrupted));
  }
  bool is_cause() const {
    return suspended || (failed() && !stopped_by_launcher && !ended_with(ExitCode::peer_lost));
  }
};

std::string last_output_line(std::string_view text) {
  while (text.ends_with('\n')) text.remove_suffix(1);
  return std::string(text.substr(text.rfind('\n') + 1));
}

std::string how_it_ended(const Rank& rank) {
  if (rank.suspended) return "was suspended by SIGSTOP and did not respond";
  if (rank.stopped_by_launcher && rank.was_killed()) return "did not respond, and was killed";
  if (!rank.failed())
    return "ended before the run was complete, with exit code " + std::to_string(rank.code());
  if (rank.ended_with(ExitCode::peer_lost)) return "ended with exit code 6 (peer lost)";
  if (!rank.was_killed()) return "ended with exit code " + std::to_string(rank.code());
  const int signal = WTERMSIG(rank.status);
  const char* const name = ::sigabbrev_np(signal);
  std::string text = "was killed by signal " + std::to_string(signal);
  if (name) text += std::string(" (SIG") + name + ")";
  if (signal == SIGKILL) text += "; the kernel does this when memory runs out (see dmesg)";
  return text;
}

/// All ranks, from their start to their end.
class Attempt {
 public:
  Attempt(const LaunchRequest& request, const Signals& signals, const Environment& variables)
      : signals_(signals), ranks_(size_t(request.ranks)) {
    for (size_t rank = 0; rank < ranks_.size(); ++rank) start(request, variables, rank);
  }
  ~Attempt() {
    for (Rank& rank : ranks_) {
      if (!rank.running) continue;
      ::kill(-rank.process, SIGKILL);
      ::waitpid(rank.process, nullptr, 0);
    }
  }
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  /// Waits for all ranks, and returns the exit code.
  int run() {
    while (std::ranges::any_of(ranks_, &Rank::running)) {
      wait_for_events();
      for (Rank& rank : ranks_) read_output(rank);
      while (const int signal = signals_.next()) handle(signal);
      for (size_t rank = 0; rank < ranks_.size(); ++rank) check_ended(rank);
      stop_others();
    }
    for (Rank& rank : ranks_) read_output(rank);
    return exit_code();
  }

  bool was_asked_to_stop() const { return stop_signal_ != 0; }

  /// Prints which rank failed first, and what it wrote. Returns why the run failed; "" if rank 0
  /// has recorded that itself.
  std::string report() const {
    if (was_stopped_at_start()) {
      std::cerr << error_text("stopped by a signal while the ranks were starting") << '\n';
      return "";
    }
    // Rank 0 has printed its error, and the others failed for the same reason.
    if (exit_code() != int(ExitCode::peer_lost) && ranks_[0].is_cause() &&
        ranks_[0].code() == exit_code() && !ranks_[0].was_killed())
      return "";
    const std::optional<size_t> first = first_failure();
    if (!first) return "";
    for (std::string_view text = ranks_[*first].text; !text.empty();) {
      const size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
      std::cerr << "rank " << *first << ": " << text.substr(0, end);
      if (text[end - 1] != '\n') std::cerr << '\n';
      text.remove_prefix(end);
    }
    const std::string cause =
        "rank " + std::to_string(*first) + " failed first: it " + how_it_ended(ranks_[*first]);
    std::cerr << error_text(cause) << '\n';
    for (const size_t i : ended_)
      if (i != *first && ranks_[i].stopped_by_launcher && ranks_[i].was_killed())
        std::cerr << error_text("rank " + std::to_string(i) +
                                " did not end by itself after that, and was killed")
                  << '\n';
    const std::string last = last_output_line(ranks_[*first].text);
    return last.empty() ? cause : cause + ": " + last;
  }

 private:
  void start(const LaunchRequest& request, Environment variables, size_t index) {
    Rank& rank = ranks_[index];
    Descriptor input, output;
    if (index > 0) {
      int ends[2];
      if (::pipe2(ends, O_CLOEXEC) != 0) fail_call("create a pipe");
      rank.output = Descriptor(ends[0]);
      output = Descriptor(ends[1]);
      ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
    }
    // A process outside the foreground group that reads from the terminal is stopped.
    if (index > 0 || ::isatty(STDIN_FILENO))
      input = Descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    variables["RANK"] = variables["LOCAL_RANK"] = std::to_string(index);
    if (index > 0) variables.erase(kRunFile);
    const std::string program = program_file();
    Words arguments(request.command), entries(entries_of(variables));
    const pid_t launcher = ::getpid();
    rank.process = ::fork();
    if (rank.process < 0) fail_call("start rank " + std::to_string(index));
    if (rank.process == 0)
      become_rank(program, arguments, entries, input.number(), output.number(), signals_.previous(),
                  launcher);
    ::setpgid(rank.process, rank.process);  // whichever of the two calls comes first
    rank.running = true;
  }

  void wait_for_events() const {
    std::vector<pollfd> sources{{signals_.descriptor(), POLLIN, 0}};
    for (const Rank& rank : ranks_)
      if (rank.output.number() >= 0) sources.push_back({rank.output.number(), POLLIN, 0});
    // After a failure, looks at the time.
    ::poll(sources.data(), sources.size(), failed_at_ ? 100 : -1);
  }

  static void read_output(Rank& rank) {
    char bytes[4096];
    while (rank.output.number() >= 0) {
      const ssize_t count = ::read(rank.output.number(), bytes, sizeof bytes);
      if (count < 0) return;  // nothing to read
      if (count == 0) rank.output = Descriptor();
      rank.text.append(bytes, size_t(count));
      if (rank.text.size() > kKeptOutput) rank.text.erase(0, rank.text.size() - kKeptOutput);
    }
  }

  void handle(int signal) {
    if (signal == SIGCHLD) return;
    if (signal == SIGTSTP) {  // Ctrl-Z
      send_to_all(SIGSTOP);
      ::raise(SIGSTOP);
      send_to_all(SIGCONT);
      return;
    }
    stop_signal_ = signal;
    send_to_all(signal);
  }

  void send_to_all(int signal) const {
    for (const Rank& rank : ranks_)
      if (rank.running) ::kill(rank.process, signal);
  }

  void check_ended(size_t index) {
    Rank& rank = ranks_[index];
    if (!rank.running || ::waitpid(rank.process, &rank.status, WNOHANG) != rank.process) return;
    rank.running = false;
    ended_.push_back(index);
    if (rank.failed() && !failed_at_) failed_at_ = Clock::now();
  }

  void stop_others() {
    if (!failed_at_) return;
    const auto elapsed = Clock::now() - *failed_at_;
    for (Rank& rank : ranks_) {
      if (!rank.running) continue;
      rank.suspended = rank.suspended || is_suspended(rank);
      const bool hangs = elapsed >= kKillAfter || rank.suspended;
      if (!hangs && elapsed < kTerminateAfter) continue;
      if (!rank.stopped_by_launcher) ::kill(rank.process, SIGTERM);
      rank.stopped_by_launcher = true;
      // The whole group: also what the rank has started.
      if (hangs) ::kill(-rank.process, SIGKILL);
    }
  }

  /// Whether the process is suspended, so that it cannot end by itself.
  static bool is_suspended(const Rank& rank) {
    siginfo_t info{};
    return ::waitid(P_PID, id_t(rank.process), &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == rank.process;
  }

  /// The rank that made the others fail, if any has failed.
  std::optional<size_t> first_failure() const {
    const auto find = [this](const auto& f) -> std::optional<size_t> {
      const auto found = std::ranges::find_if(ended_, [&](size_t i) { return f(ranks_[i]); });
      return found == ended_.end() ? std::nullopt : std::optional(*found);
    };
    if (const auto rank = find([](const Rank& r) { return r.is_cause(); })) return rank;
    if (!failed_at_) return std::nullopt;
    // Only lost peers: of a rank that hangs, or that left before the end.
    if (const auto rank =
            find([](const Rank& r) { return r.stopped_by_launcher && r.was_killed(); }))
      return rank;
    if (!ranks_[ended_.front()].failed()) return ended_.front();
    return find([](const Rank& r) { return r.failed(); });
  }

  /// Whether the signal that asked the ranks to stop ended one that did not handle it yet.
  bool was_stopped_at_start() const {
    return stop_signal_ != 0 && std::ranges::any_of(ranks_, [this](const Rank& rank) {
             return rank.was_killed() && WTERMSIG(rank.status) == stop_signal_ &&
                    !rank.stopped_by_launcher;
           });
  }

  int exit_code() const {
    const auto has_code = [&](size_t i) {
      return !ranks_[i].stopped_by_launcher && !ranks_[i].was_killed() && ranks_[i].code() != 0 &&
             !ranks_[i].ended_with(ExitCode::peer_lost);
    };
    if (const auto first = std::ranges::find_if(ended_, has_code); first != ended_.end())
      return ranks_[*first].code();
    if (was_stopped_at_start())
      return int(stop_signal_ == SIGINT ? ExitCode::interrupted : ExitCode::preempted);
    return std::ranges::any_of(ranks_, &Rank::failed) ? int(ExitCode::peer_lost) : 0;
  }

  const Signals& signals_;
  std::vector<Rank> ranks_;
  std::vector<size_t> ended_;  // in this order
  std::optional<Clock::time_point> failed_at_;
  int stop_signal_ = 0;  // handed on; 0 = none
};

/// A file in memory, in which rank 0 writes the path of the run folder.
class RunFile {
 public:
  RunFile() : file_(::memfd_create("dsv3 run", MFD_CLOEXEC)) {
    if (file_.number() < 0) fail_call("create a file in memory");
  }
  std::string path() const {
    return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(file_.number());
  }
  std::string read() const {
    char name[PATH_MAX];
    const ssize_t size = ::pread(file_.number(), name, sizeof name, 0);
    return size > 0 ? std::string(name, size_t(size)) : "";
  }

 private:
  Descriptor file_;
};

}  // namespace

bool must_launch(const RankContext& context, std::optional<int64_t> ranks, int64_t max_restarts) {
  if (context.launcher == "dsv3-run") return false;  // a rank of launch()
  // A shell in an allocation of Slurm (`srun --pty bash`) is one task.
  const bool is_rank = context.world > 1 || context.launcher == "torchrun";
  if (!is_rank) return ranks.value_or(1) > 1 || max_restarts > 0;
  if (ranks && *ranks != context.local_world)
    throw Error("--num_gpus " + std::to_string(*ranks) + " contradicts " + context.launcher +
                    ", which started " + std::to_string(context.local_world) + " of " +
                    std::to_string(context.world) +
                    " rank(s) on this machine; remove --num_gpus, or start dsv3-run without " +
                    context.launcher,
                ExitCode::usage);
  if (max_restarts > 0)
    throw Error("--max_restarts requires that dsv3-run starts the ranks, but " + context.launcher +
                    " does; use torchrun --max-restarts or sbatch --requeue with --resume auto",
                ExitCode::usage);
  return false;
}

int launch(const LaunchRequest& request) {
  const Signals signals;  // before the thread of the store starts
  const RunFile run;
  // The launcher keeps the store of all attempts. So no other program can take its port before rank
  // 0 does, and ranks can read there why rank 0 failed.
  int64_t port = 0;
  const std::shared_ptr<void> store = serve_store(port);
  Environment variables = environment();
  variables["WORLD_SIZE"] = variables["LOCAL_WORLD_SIZE"] = std::to_string(request.ranks);
  variables["MASTER_ADDR"] = "127.0.0.1";
  variables["MASTER_PORT"] = std::to_string(port);
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  variables["DSV3_LAUNCHER"] = std::to_string(::getpid());
  variables[kRunFile] = run.path();
  for (int64_t attempt = 0;; ++attempt) {
    variables["TORCHELASTIC_RESTART_COUNT"] = std::to_string(attempt);
    if (const std::filesystem::path path = run.read(); !path.empty())
      variables[kResumedRun] = path.filename().string();
    Attempt ranks(request, signals, variables);
    const int code = ranks.run();
    const std::string cause = ranks.report();
    if (!cause.empty() && request.on_failure) request.on_failure(run.read(), code, cause);
    if (code != int(ExitCode::peer_lost) || ranks.was_asked_to_stop() ||
        attempt == request.max_restarts)
      return code;
    log::warning("starting all ranks again: restart " + std::to_string(attempt + 1) +
                 " of at most " + std::to_string(request.max_restarts));
  }
}

void announce_run(const std::filesystem::path& folder) {
  const char* const path = std::getenv(kRunFile);
  if (!path) return;
  const std::string& name = folder.native();
  const Descriptor file(::open(path, O_WRONLY | O_TRUNC | O_CLOEXEC));
  if (file.number() < 0 || ::write(file.number(), name.data(), name.size()) != ssize_t(name.size()))
    log::warning(
        "the launcher cannot learn the name of the run, so it would start a new one after "
        "a failure: " +
        std::string(std::strerror(errno)));
  ::unsetenv(kRunFile);  // not for programs that this rank starts
}

std::string announced_run() {
  const char* const name = std::getenv(kResumedRun);
  return name ? name : "";
}

}  // namespace dsv3
