#include "conformance/conformance.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <map>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/support/json.h>

#include "call/call.h"
#include "config/check.h"
#include "config/layers.h"
#include "conformance/backtrace.h"
#include "conformance/fake_device.h"
#include "conformance/suite.h"
#include "machine/machine.h"
#include "plugin/library.h"

namespace dsv3::conformance {
namespace {

using OnResult = std::function<void(const Result&)>;

constexpr size_t kLongestMessage = 1 << 16;        // bytes
constexpr size_t kMostNotes = 8;                   // per check
constexpr rlim_t kMemoryLimit = rlim_t{12} << 30;  // bytes of address space per child process

// Sends each message as one packet, so that messages sent before a crash are not lost.
void send(int report, const Json& message) {
  const std::string text = message.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (::send(report, text.data(), text.size(), 0) < 0) ::_exit(1);
}

// Truncates `text` so that the message that contains it fits into kLongestMessage bytes, even if
// JSON escapes every byte.
std::string cut(const std::string& text) {
  return text.substr(0, kLongestMessage / 8);
}

// A catalog without components, so that "did you mean" suggests only options of the checked
// component.
class OneComponent final : public Catalog {
 public:
  const Schema* schema(Kind, const std::string&, const std::string&) override { return nullptr; }
  std::string alias(Kind, const std::string&) const override { return ""; }
  std::vector<std::string> names(Kind) const override { return {}; }
  std::string searched() const override { return ""; }
  std::string searched_library(const std::string&, const std::string&) const override { return ""; }
};

// Parses `key=value` settings and checks them like options in an experiment.
OptionValues options_of(const Registration& component, const std::vector<std::string>& settings) {
  const std::string name = kind_name(component.kind) + ("/" + component.name);
  config::Diagnostics diagnostics;
  config::Node map = config::make_map(
      {diagnostics.add_source("dsv3 plugins check", "--set OPTION=VALUE", false), 1, 1});
  for (const std::string& setting : settings)
    if (auto tree =
            config::parse_setting(diagnostics, diagnostics.add_source("--set", setting, false))) {
      config::Entry& entry = tree->entries.front();
      map.erase(entry.key);
      map.entries.push_back(std::move(entry));
    }
  OneComponent catalog;
  Experiment ignored;
  config::Checker checker(map, diagnostics, catalog, ignored);
  OptionValues values =
      checker.values(&map, *component.schema, {name, {}, "", component.kind, component.name});
  diagnostics.throw_if_any();
  return values;
}

// Returns the checks for `kind` whose names are in `request.only`, or all checks for it if that is
// empty.
std::vector<Check> chosen_checks(Kind kind, const Request& request) {
  const std::vector<std::string>& only = request.only;
  std::vector<Check> chosen = checks(kind, request.gpu);
  std::vector<std::string> known;
  for (const Check& check : chosen) known.push_back(check.name);
  for (const std::string& name : only) {
    if (name == kDeviceCheck && !request.gpu)
      throw Error(
          c10::str("check '", name, "' needs a device; pass --device cuda or --device fake"),
          ExitCode::usage);
    if (std::ranges::find(known, name) == known.end())
      throw Error(c10::str("unknown check '", name, "' for ", kind_name(kind),
                           "; known: ", c10::Join(", ", known)),
                  ExitCode::usage);
  }
  if (!only.empty())
    std::erase_if(chosen, [&](const Check& check) {
      return std::ranges::find(only, check.name) == only.end();
    });
  return chosen;
}

const Registration& component_of(const Library& library, const std::string& component) {
  for (const Registration& registration : library.registrations)
    if (kind_name(registration.kind) + ("/" + registration.name) == component) return registration;
  throw Error("plugin '" + library.stamp.name + "' does not provide " + component +
                  "; it provides " + component_list(library.stamp.provides),
              ExitCode::usage);
}

// Returns the GPU for this process. Throws if it cannot be used. Only child processes may call
// this, because CUDA does not work in a process that was forked after CUDA had been initialised.
at::Device gpu() {
  TrainOptions train;
  train.device = "cuda";
  return device_of(train, {"--device", "pass --device fake, which needs no GPU"});
}

// Makes LibTorch start its threads and allocate its internal memory now, on the CPU and on
// `device`, so that neither is attributed to the component.
void warm_up(at::Device device) {
  at::set_num_threads(1);
#ifdef __SANITIZE_THREAD__
  std::thread([] {}).join();  // ThreadSanitizer starts its background thread together with the
                              // program's first thread
#endif
  for (const at::Device used : {at::Device(at::kCPU), device}) {
    const at::Tensor x = at::ones({4, 4}, used).requires_grad_();
    torch::autograd::backward({x.mm(x).sum()}, {});
  }
}

/// The socket of a child process for the parent, for report_fault().
int fault_socket = -1;

// Reports to the parent what preceded the crash. Runs in a signal handler.
void report_fault(const char* text) {
  char message[256];
  const int size = std::snprintf(message, sizeof message, R"({"fault": "%s"})", text);
  (void)!::send(fault_socket, message, static_cast<size_t>(size), 0);
}

void run(const Check& check, const Subject& subject, int report) {
  send(report, {{"check", check.name}, {"promise", check.promise}});
  std::string error, inapplicable;
  try {
    require_no_side_effects([&] { check.run(subject); });
  } catch (const NotApplicable& e) {
    inapplicable = e.what();
  } catch (const Violation& e) {
    error = e.what();
  } catch (...) {
    error = "the plugin throws an exception: " + current_exception_text();
  }
  std::vector<std::string> notes = take_wait_notes();
  const std::string untestable = inapplicable.empty() ? untestable_part(error) : inapplicable;
  if (!untestable.empty()) {
    notes = {untestable};
    error.clear();
  }
  for (std::string& note : notes) note = cut(note);
  if (notes.size() > kMostNotes) notes.resize(kMostNotes);
  send(report, {{"error", cut(error)}, {"tested", untestable.empty()}, {"notes", notes}});
}

// Entry point of the child process. Runs the component's checks, starting at index `first`, and
// sends messages through the socket `report`: first the device, then what the library provides. If
// `request.component` is empty, only loads the library.
void run_child(const Request& request, size_t first, int report) {
  try {
    const at::Device device = request.gpu ? gpu() : at::Device(at::kCPU);
    fault_socket = report;
    report_faults_to(&report_fault);
    send(report, {{"device", device.str()}});
    const Library& library = load_library(request.library);
    report_crashes_to(report, library.image);
    send(report, {{"provides", library.stamp.provides}});
    if (request.component.empty()) return;
    Subject subject{component_of(library, request.component), {}, "", request.levels, device};
    subject.options = options_of(subject.component, request.options);
    const std::vector<Check> all = chosen_checks(subject.component.kind, request);
    warm_up(device);
    for (size_t i = first; i < all.size(); ++i) {
      const auto folder = request.folder / (subject.component.name + "-" + all[i].name);
      std::filesystem::create_directory(folder);
      subject.folder = folder.string();
      run(all[i], subject, report);
    }
    send(report, {{"done", true}});
  } catch (const Error& e) {
    send(report, {{"rejected", cut(e.what())}, {"code", static_cast<int>(e.code())}});
  } catch (...) {
    send(report, {{"rejected", cut(current_exception_text())}, {"code", 3}});
  }
}

Error system_error(const std::string& what) {
  return Error(what + ": " + std::strerror(errno));
}

// A child process that runs checks. The destructor kills its process group.
class Child {
 public:
  Child(const Request& request, size_t first) : time_limit_(request.time_limit) {
    int ends[2];  // preserves message boundaries
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
      throw system_error("cannot create a socket");
    std::cout.flush();  // prevents the child from printing the parent's buffered output
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw system_error("cannot start a process");
    if (pid_ == 0) {
      limit(request.gpu);
      run_child(request, first, ends[1]);
      std::exit(0);
    }
    ::close(ends[1]);
    report_ = ends[0];
    const timeval limit{.tv_sec = time_limit_.count(), .tv_usec = 0};
    ::setsockopt(report_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    ::kill(-pid_, SIGKILL);
    while (::waitpid(-1, nullptr, 0) > 0) {  // orphaned grandchildren become children of this
                                             // process
    }
    ::close(report_);
  }

  /// Returns the next message, or {"died": true, "error": why} if the child exited or timed out.
  Json read() {
    std::string text(kLongestMessage, '\0');
    ssize_t count = -1;
    do count = ::recv(report_, text.data(), text.size(), 0);
    while (count < 0 && errno == EINTR);
    text.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (Json message = Json::parse(text, nullptr, false); !message.is_discarded()) return message;
    // A process started by the component may keep the socket open after the child exits.
    std::string error = "timed out after " + std::to_string(time_limit_.count()) + " s";
    if (count >= 0 || ended()) error = wait(std::chrono::seconds(5));
    return {{"died", true}, {"error", error.empty() ? exit_text() : error}};
  }

  /// Waits for the process and returns how it ended, or "" for exit code 0. Kills the process if it
  /// does not end within `limit`.
  std::string wait(std::chrono::seconds limit) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!ended() && std::chrono::steady_clock::now() < end) ::usleep(2000);
    if (!ended()) {
      ::kill(pid_, SIGKILL);
      return "the plugin prevents the process from exiting (waited " +
             std::to_string(limit.count()) + " s)";
    }
    if (WIFSIGNALED(status_)) {
      const int signal = WTERMSIG(status_);
      return std::string("the plugin crashed with SIG") + ::sigabbrev_np(signal) + " (" +
             ::strsignal(signal) + ")";
    }
    return WEXITSTATUS(status_) == 0 ? "" : exit_text();
  }

 private:
  static void limit(bool gpu) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they reserve terabytes
    const rlimit memory{kMemoryLimit, kMemoryLimit};
    if (!gpu) ::setrlimit(RLIMIT_AS, &memory);  // CUDA reserves more addresses than this
#endif
  }
  bool ended() {
    if (!ended_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
    return ended_;
  }
  std::string exit_text() const {
    return "the plugin exited with code " + std::to_string(WEXITSTATUS(status_));
  }

  std::chrono::seconds time_limit_;
  pid_t pid_ = -1;
  int report_ = -1, status_ = 0;
  bool ended_ = false;
};

// What errors with one cause have in common: their text without numbers.
std::string cause_of(const std::string& error) {
  if (error.find(kNotFinite) != error.npos) return kNotFinite;
  std::string cause;
  std::ranges::copy_if(error, std::back_inserter(cause), [](char c) { return c < '0' || c > '9'; });
  return cause;
}

// Runs the checks and starts a new child process after each crash. Returns the number of failed
// checks.
int check_component(const Request& request, const OnResult& on_result) {
  int broken = 0;
  std::map<std::string, std::string> first_checks;  // by cause
  const auto report = [&](const std::string& check, const std::string& promise,
                          const std::string& error, const Json& message = Json::object()) {
    std::string same_as;
    if (!error.empty()) {
      ++broken;
      const auto [first, is_new] = first_checks.emplace(cause_of(error), check);
      if (!is_new) same_as = first->second;
    }
    on_result({request.component, check, promise, error.empty(), error, same_as,
               message.value("tested", true), message.value("notes", std::vector<std::string>())});
  };
  for (size_t finished = 0;;) {
    Child child(request, finished);
    Json begun;          // the check that is running in the child process
    std::string fault;   // what preceded a crash
    std::string frames;  // where it happened
    for (bool alive = true; alive;) {
      const Json message = child.read();
      if (message.contains("rejected"))
        throw Error(message["rejected"], static_cast<ExitCode>(message["code"].get<int>()));
      alive = !message.contains("died");
      if (message.contains("check")) {
        begun = message;
      } else if (message.contains("fault")) {
        fault = ": " + message["fault"].get<std::string>() + " (see the backtrace on stderr)";
      } else if (message.contains("frames")) {
        frames = frame_lines(message["frames"], request.library);
      } else if (message.contains("done")) {
        std::string error = child.wait(std::min(request.time_limit, std::chrono::seconds(20)));
        if (error.empty() && ::waitpid(-1, nullptr, WNOHANG) >= 0)
          error = "the plugin leaves child processes running";
        report("process", "lets the process exit and leaves no child processes running", error);
        return broken;
      } else if (message.contains("error")) {
        if (begun.is_null()) {  // the child process crashed between checks or before the first one
          report("process", "does not terminate the process",
                 message["error"].get<std::string>() + frames);
          return broken;
        }
        ++finished;
        report(begun["check"], begun["promise"],
               message["error"].get<std::string>() + fault + frames, message);
        begun = nullptr;
      }
    }
  }
}

// Loads the library in a child process. Returns the message that lists its components or why it
// cannot be loaded. Throws an Error if the requested GPU cannot be used.
Json load(const Request& request) {
  Child child(request, 0);
  const Json started = child.read();
  if (started.contains("rejected"))
    throw Error(started["rejected"], static_cast<ExitCode>(started["code"].get<int>()));
  if (started.contains("died"))
    throw Error("the GPU cannot be initialised: " + started["error"].get<std::string>());
  return child.read();
}

}  // namespace

int check_library(const Request& original, const OnResult& on_result) {
  Request request = original;
  if (!std::filesystem::is_regular_file(request.library))
    throw Error("plugin library not found: " + request.library.string(), ExitCode::plugin);
  // The parent process creates and removes this folder, because a child that crashes cannot clean
  // up.
  std::string folder = std::filesystem::temp_directory_path() / "dsv3-check-XXXXXX";
  if (!::mkdtemp(folder.data()))
    throw system_error("cannot create temporary folder " + folder +
                       " (set TMPDIR to a writable folder)");
  const std::shared_ptr<void> removal(nullptr, [&](void*) {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  });
  request.folder = folder;
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);

  request.component.clear();
  const Json loaded = load(request);
  std::string error = loaded.value("rejected", "");
  if (loaded.contains("died"))
    error = "loading the library failed: " + loaded["error"].get<std::string>();
  on_result({"", "load", "loads and registers the components that its stamp lists", error.empty(),
             error});
  if (!error.empty()) return 1;
  std::vector<std::string> components = loaded["provides"];
  if (!original.component.empty()) components = {original.component};
  int broken = 0;
  for (std::string& component : components) {
    request.component = std::move(component);
    broken += check_component(request, on_result);
  }
  return broken;
}

}  // namespace dsv3::conformance
