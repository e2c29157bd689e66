// Reports crashes. May run in a signal handler, in the middle of malloc, so it reads only memory
// prepared in advance and calls only functions that do not allocate: vsnprintf, write, open,
// rename.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <exception>
#include <execinfo.h>
#include <fcntl.h>
#include <mutex>
#include <string>
#include <unistd.h>

#include <dsv3/runtime/crash.h>
#include <dsv3/sdk/error.h>

#include "call/backward.h"
#include "call/call.h"
#include "support/host.h"
#include "support/mapped_files.h"
#include "support/terminal.h"

namespace dsv3 {
namespace {

constexpr std::array kSignals{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS, SIGTRAP, SIGQUIT};

/// A fixed-size text buffer, which truncates text that does not fit. glibc's vsnprintf does not
/// allocate when it formats integers and strings.
struct Text {
  char bytes[8192] = "";
  size_t size = 0;

  __attribute__((format(printf, 2, 3))) void add(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int count = std::vsnprintf(bytes + size, sizeof bytes - size, format, arguments);
    va_end(arguments);
    size = std::min(size + static_cast<size_t>(std::max(count, 0)), sizeof bytes - 1);
  }
  void add_json(const char* text) {  // escapes `text` for a JSON string
    for (; *text; ++text)
      add(*text == '"' || *text == '\\' ? "\\%c" : "%c", *text < ' ' && *text >= 0 ? ' ' : *text);
  }
  void write_to(int file) const {
    for (size_t done = 0; done < size;) {
      const ssize_t count = ::write(file, bytes + done, size - done);
      if (count <= 0 && errno != EINTR) return;
      done += count > 0 ? static_cast<size_t>(count) : 0;
    }
  }
};

struct Prepared {
  pid_t process = 0;                               // a forked child has a different id
  const CallRecord* const* main_thread = nullptr;  // its innermost call
  bool ending = false, backtrace = false;
  char status[4096] = "", temporary[4096] = "", host[256] = "";
  std::atomic<pid_t> reporter{0};  // thread that is reporting or has reported a crash
  std::array<char, 64 << 10> stack;
};
Prepared prepared;

/// The libraries that were loaded from copies in memory. Never shrinks, because a signal handler
/// may read it at any time.
struct Image {
  std::string image, library;
  const Image* next;
};
std::atomic<const Image*> images{nullptr};

const char* library_of(const char* image) {
  for (const Image* one = images; one; one = one->next)
    if (one->image == image) return one->library.c_str();
  return image;
}

/// Prints the call stack like backtrace_symbols_fd(), but with the paths of plugin libraries.
void print_stack() {
  std::array<void*, 64> frames;
  const int count = ::backtrace(frames.data(), int(frames.size()));
  for (int i = 0; i < count; ++i) {
    Text line;
    Dl_info info{};
    void* frame = frames[size_t(i)];
    if (::dladdr(frame, &info) && info.dli_fname)
      line.add("%s(%s+%#tx) ", library_of(info.dli_fname), info.dli_sname ? info.dli_sname : "",
               static_cast<const char*>(frame) -
                   static_cast<const char*>(info.dli_sname ? info.dli_saddr : info.dli_fbase));
    line.add("[%p]\n", frame);
    line.write_to(STDERR_FILENO);
  }
}

/// Describes a crash: "SIGSEGV in attention 'mla' (layer 3, forward) at step 12, nano.yaml:5:13,
/// plugin /x.so: ..."
void describe(Text& text, const char* event, const char* cause) {
  const CallRecord* call = CallRecord::current();
  bool here = call;
  if (!call && prepared.main_thread) call = *prepared.main_thread;
  const Callee* callee = call ? &call->callee : nullptr;
  int64_t layer = call ? call->layer() : -1;
  if (call && call->action == kBackward && current_backward.callee) {
    callee = current_backward.callee;
    layer = current_backward.layer;
    here |= current_backward.thread == &CallRecord::current();
  }
  text.add("%s%s", event,
           !callee ? " outside any plugin call"
           : here  ? " in "
                   : " on another thread during ");
  if (callee) text.add("%s (", callee->label.c_str());
  if (callee && layer >= 0) text.add("layer %ld, ", layer);
  if (callee) text.add("%s)", call->action);
  if (current_step.number >= 0) text.add(" at step %ld", current_step.number.load());
  if (callee && !callee->origin.empty()) text.add(", %s", callee->origin.c_str());
  if (callee) text.add(", plugin %s", callee->library.c_str());
  if (*cause) text.add(": %s", cause);
  if (callee)
    text.add("; run `dsv3 plugins check %s%s` to test the component", callee->check.c_str(),
             current_step.on_gpu ? " --device fake" : "");
}

std::atomic<bool> crash_reported{false};
std::atomic<pid_t> status_writer{0};  // the thread that replaces status.json; 0 = none

/// Waits until no other thread replaces status.json, for a minute at most, because a busy disk may
/// take seconds to sync a file.
void wait_for_status_writer() {
  const timespec pause{.tv_sec = 0, .tv_nsec = 10'000'000};
  for (int i = 0; i < 6000 && status_writer != 0 && status_writer != ::gettid(); ++i)
    ::nanosleep(&pause, nullptr);
}

/// Writes a status.json with the same keys as RunFolder::write_status.
void write_status(const char* state, const char* message, int exit_code) {
  crash_reported = true;
  if (!prepared.status[0]) return;
  wait_for_status_writer();
  Text json;
  json.add("{\n \"exit_code\": %d,\n \"host\": \"", exit_code);
  json.add_json(prepared.host);
  json.add("\",\n \"message\": \"");
  json.add_json(message);
  json.add("\",\n \"pid\": %d,\n \"state\": \"%s\",\n \"step\": %ld,\n \"time\": \"%s\"\n}\n",
           ::getpid(), state, current_step.finished.load(), utc_text(wall_seconds()).data());
  const int file = ::open(prepared.temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return;
  json.write_to(file);
  ::fsync(file);
  ::close(file);
  ::rename(prepared.temporary, prepared.status);
}

/// Whether this thread should report the crash: false in a child process, or if this thread has
/// already reported one. Never returns if another thread is reporting a crash.
bool may_report() {
  if (::getpid() != prepared.process) return false;
  const pid_t self = ::gettid();
  pid_t other = 0;
  if (prepared.reporter.compare_exchange_strong(other, self)) return true;
  if (other == self) return false;
  for (;;) ::pause();  // the other thread is about to end the process
}

void report(const char* event, const char* cause, int exit_code) {
  Text message, line;
  describe(message, event, cause);
  line.add("error: %s\n", message.bytes);
  end_live_line();
  line.write_to(STDERR_FILENO);
  if (prepared.backtrace) print_stack();
  write_status("failed", message.bytes, exit_code);
}

/// Prints `message`, writes it to status.json and ends the process.
[[noreturn]] void end(const char* state, const char* message, int exit_code) {
  Text line;
  line.add("error: %s\n", message);
  end_live_line();
  line.write_to(STDERR_FILENO);
  write_status(state, message, exit_code);
  ::_exit(exit_code);
}

/// Reports a read from a mapped file that shrank, which raises SIGBUS, and ends the process.
/// Returns if the fault has another cause.
void report_shrunk_file(int signal, const siginfo_t& info) {
  const char* path =
      signal == SIGBUS && info.si_code > 0 ? fs::mapped_path_at(info.si_addr) : nullptr;
  if (!path || !may_report()) return;
  const auto message = fs::shrunk_message(path);
  end("failed", message.data(), static_cast<int>(ExitCode::data));
}

extern "C" void on_fault(int signal, siginfo_t* info, void*) {
  const int error = errno;
  report_shrunk_file(signal, *info);
  // The signal is raised again below, with its default action.
  std::signal(signal, SIG_DFL);
  if (may_report()) {
    Text event;
    event.add("SIG%s", ::sigabbrev_np(signal));
    report(event.bytes, "", 128 + signal);
  }
  ::raise(signal);
  errno = error;
}

[[noreturn]] void on_terminate() {
  if (may_report()) {
    std::string cause = std::current_exception() ? current_exception_text() : "no exception";
    std::replace(cause.begin(), cause.end(), '\n', ' ');
    report("std::terminate", cause.c_str(), 128 + SIGABRT);
  }
  std::abort();
}

/// Reports that a component called exit() or quick_exit(), and ends the process with
/// ExitCode::plugin.
void fail_exit(const char* event) {
  if (prepared.ending || !may_report()) return;
  report(event, "a component must not end the process", static_cast<int>(ExitCode::plugin));
  ::_exit(static_cast<int>(ExitCode::plugin));
}

void on_exit_of_process(int status, void*) {
  Text event;
  event.add("exit(%d)", status);
  fail_exit(event.bytes);
}

}  // namespace

void name_image(const std::string& image, const std::string& library) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  images = new Image{image, library, images};
}

CrashReports::CrashReports() {
  prepared.process = ::getpid();
  prepared.main_thread = &CallRecord::current();
  ::gethostname(prepared.host, sizeof prepared.host - 1);
  const stack_t stack{
      .ss_sp = prepared.stack.data(), .ss_flags = 0, .ss_size = prepared.stack.size()};
  ::sigaltstack(&stack, nullptr);  // a handler for stack overflows needs a separate stack
  struct sigaction action {
  }, present{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_ONSTACK | SA_SIGINFO;
  for (const int signal : kSignals)  // leaves a sanitizer's handlers in place
    if (::sigaction(signal, nullptr, &present) == 0 && present.sa_handler == SIG_DFL)
      ::sigaction(signal, &action, nullptr);
  std::set_terminate(on_terminate);
  ::on_exit(on_exit_of_process, nullptr);
  std::at_quick_exit([] { fail_exit("quick_exit()"); });
}

CrashReports::~CrashReports() {
  prepared.ending = true;
}

void end_run(const char* state, int signal, const char* when, int exit_code) {
  if (!may_report()) ::_exit(exit_code);
  Text message;
  message.add("stopped by SIG%s %s", ::sigabbrev_np(signal), when);
  end(state, message.bytes, exit_code);
}

void print_backtraces() {
  void* frame = nullptr;
  ::backtrace(&frame, 1);  // the first call allocates memory, so make it now
  prepared.backtrace = true;
}

StatusWriter::StatusWriter() {
  status_writer = ::gettid();
  if (!crash_reported) return;
  status_writer = 0;
  for (;;) ::pause();
}

StatusWriter::~StatusWriter() {
  status_writer = 0;
}

void report_crashes_to(const std::filesystem::path& status) {
  const std::string path = status.string(), temporary = path + ".new";
  if (temporary.size() >= sizeof prepared.status) return;
  const StatusWriter writer;
  std::strcpy(prepared.temporary, temporary.c_str());
  std::strcpy(prepared.status, path.c_str());
  // Exit handlers run in reverse order of registration. This one must run before the destructors of
  // libraries that were loaded after main began, because training threads may still use those
  // libraries.
  if (prepared.process != 0) ::on_exit(on_exit_of_process, nullptr);
}

}  // namespace dsv3
