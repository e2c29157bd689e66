// Last words. Whatever runs here may run in a signal handler, in the middle of malloc: it calls
// write, open, rename and such only, and reads memory that was prepared before.
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <fcntl.h>
#include <span>
#include <string>
#include <string_view>
#include <unistd.h>

#include <torch/csrc/autograd/function.h>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/provenance.h>

#include "barrier/call.h"
#include "plugin/library.h"

namespace dsv3 {
namespace {

using barrier::Callee;
using barrier::InCall;

constexpr std::array kSignals{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

// Text in a fixed buffer; what does not fit is cut off.
class Text {
 public:
  Text& add(std::string_view text) {
    const size_t count = std::min(text.size(), sizeof bytes_ - size_);
    std::memcpy(bytes_ + size_, text.data(), count);
    size_ += count;
    return *this;
  }
  Text& add(int64_t number, int digits = 1) {
    char reversed[24];
    int count = 0;
    const bool negative = number < 0;
    for (uint64_t rest = negative ? 0 - uint64_t(number) : uint64_t(number);
         rest > 0 || count < digits; rest /= 10)
      reversed[count++] = static_cast<char>('0' + rest % 10);
    if (negative) reversed[count++] = '-';
    while (count > 0) add(std::string_view(&reversed[--count], 1));
    return *this;
  }
  /// As the inside of a JSON string.
  Text& add_json(std::string_view text) {
    constexpr std::string_view kHex = "0123456789abcdef";
    for (const char& c : text) {
      const auto code = static_cast<unsigned char>(c);
      if (code < 0x20)
        add("\\u00").add(kHex.substr(code / 16, 1)).add(kHex.substr(code % 16, 1));
      else
        add(c == '"' || c == '\\' ? "\\" : "").add(std::string_view(&c, 1));
    }
    return *this;
  }
  std::string_view view() const { return {bytes_, size_}; }
  void write_to(int file) const {
    for (size_t done = 0; done < size_;) {
      const ssize_t written = ::write(file, bytes_ + done, size_ - done);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return;
      done += static_cast<size_t>(written);
    }
  }

 private:
  char bytes_[8192];
  size_t size_ = 0;
};

// All that is needed later, made while memory could still be had.
struct Prepared {
  pid_t process = 0;                           // a forked child is none of ours
  const InCall* const* main_thread = nullptr;  // its innermost call
  bool terminal = false, ending = false;
  char status[4096] = "", temporary[4096] = "";  // paths
  char host[256] = "";
  std::atomic<pid_t> reporter{0};  // thread that tells, or has told
  std::array<char, 64 << 10> stack;
};
Prepared prepared;

// The component whose code runs: in backward it is the one that made the autograd node.
const Callee& running(const InCall& call, bool own_thread) {
  if (call.action != barrier::kBackward || !own_thread) return call.callee;
  const auto node = torch::autograd::get_current_node();
  const Callee* maker = node ? barrier::maker_of(node->sequence_nr(), node->thread_id()) : nullptr;
  return maker ? *maker : call.callee;
}

void add_place(Text& text, const InCall& call, bool own_thread) {
  const Callee& callee = running(call, own_thread);
  const int64_t layer = &callee == &call.callee ? call.layer() : callee.layer;
  text.add(own_thread ? " in " : " on another thread during ").add(callee.label).add(" (");
  if (layer >= 0) text.add("layer ").add(layer).add(", ");
  text.add(call.action).add(")");
}

// "error: SIGSEGV in attention 'mla' (layer 3, forward) at step 12, nano.yaml:5:13, plugin /x.so;
// ..."
void describe(Text& text, std::string_view what, std::string_view cause) {
  const InCall* own = barrier::innermost;
  const InCall* call = own ? own : prepared.main_thread ? *prepared.main_thread : nullptr;
  text.add(what);
  if (call)
    add_place(text, *call, own);
  else
    text.add(" outside of any plugin's call");
  if (const int64_t number = barrier::step.number; number >= 0) text.add(" at step ").add(number);
  if (call) {
    const Callee& callee = running(*call, own);
    if (!callee.origin.empty()) text.add(", ").add(callee.origin);
    text.add(", plugin ").add(callee.library);
  }
  if (!cause.empty()) text.add(": ").add(cause);
  if (call) text.add("; dsv3 plugins check ").add(running(*call, own).check).add(" finds out more");
}

// 2026-01-31T23:59:59Z, by the civil calendar of the Gregorian era.
void add_time(Text& text) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const int64_t day = now.tv_sec / 86400, second = now.tv_sec % 86400;
  const int64_t shifted = day + 719468;  // days since 0000-03-01
  const int64_t era = shifted / 146097, of_era = shifted % 146097;
  const int64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
  const int64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const int64_t march_month = (5 * of_year + 2) / 153;
  const int64_t month = march_month < 10 ? march_month + 3 : march_month - 9;
  const int64_t year = year_of_era + era * 400 + (month <= 2 ? 1 : 0);
  text.add(year, 4).add("-").add(month, 2).add("-");
  text.add(of_year - (153 * march_month + 2) / 5 + 1, 2).add("T").add(second / 3600, 2).add(":");
  text.add(second / 60 % 60, 2).add(":").add(second % 60, 2).add("Z");
}

// The keys of RunFolder::write_status.
void write_status(std::string_view message, int exit_code) {
  if (!prepared.status[0]) return;
  Text json;
  json.add("{\n \"exit_code\": ").add(exit_code).add(",\n \"host\": \"").add_json(prepared.host);
  json.add("\",\n \"message\": \"").add_json(message).add("\",\n \"pid\": ").add(::getpid());
  json.add(",\n \"state\": \"failed\",\n \"step\": ").add(barrier::step.finished.load());
  json.add(",\n \"time\": \"");
  add_time(json);
  json.add("\"\n}\n");
  const int file = ::open(prepared.temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return;
  json.write_to(file);
  ::fsync(file);
  ::close(file);
  ::rename(prepared.temporary, prepared.status);
}

// False: a child process, or this thread has told already.
bool may_report() {
  if (::getpid() != prepared.process) return false;
  const pid_t self = ::gettid();
  pid_t other = 0;
  if (prepared.reporter.compare_exchange_strong(other, self)) return true;
  if (other == self) return false;
  for (;;) ::pause();  // the other thread is about to end the process
}

void report(std::string_view what, std::string_view cause, int exit_code) {
  Text message, line;
  describe(message, what, cause);
  line.add(prepared.terminal ? "\r\x1b[K" : "").add("error: ").add(message.view()).add("\n");
  line.write_to(STDERR_FILENO);
  write_status(message.view(), exit_code);
}

extern "C" void on_fault(int signal) {
  const int error = errno;
  // The signal comes again when this handler returns, with its default action.
  std::signal(signal, SIG_DFL);
  if (may_report()) {
    Text name;
    name.add("SIG").add(::sigabbrev_np(signal));
    report(name.view(), "", 128 + signal);
  }
  ::raise(signal);
  errno = error;
}

[[noreturn]] void on_terminate() {
  if (may_report()) {
    std::string cause = "no exception";
    if (std::current_exception()) cause = current_exception_text();
    std::replace(cause.begin(), cause.end(), '\n', ' ');
    report("std::terminate", cause, 128 + SIGABRT);
  }
  std::abort();
}

[[noreturn]] void refuse_exit(std::string_view what) {
  report(what, "a component must not end the process", static_cast<int>(ExitCode::plugin));
  ::_exit(static_cast<int>(ExitCode::plugin));
}

void on_exit_of_process(int status, void*) {
  if (prepared.ending || !may_report()) return;
  Text what;
  refuse_exit(what.add("exit(").add(status).add(")").view());
}

void on_quick_exit() {
  if (!prepared.ending && may_report()) refuse_exit("quick_exit()");
}

void copy(std::string_view text, std::span<char> to) {
  const size_t count = std::min(text.size(), to.size() - 1);
  std::memcpy(to.data(), text.data(), count);
  to[count] = 0;
}

}  // namespace

CrashReports::CrashReports() {
  prepared.process = ::getpid();
  prepared.main_thread = &barrier::innermost;
  prepared.terminal = ::isatty(STDERR_FILENO) == 1;
  copy(host_name(), prepared.host);
  const stack_t stack{
      .ss_sp = prepared.stack.data(), .ss_flags = 0, .ss_size = prepared.stack.size()};
  ::sigaltstack(&stack, nullptr);  // for a stack that overflows
  for (const int signal : kSignals) {
    struct sigaction action {
    }, former{};
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    ::sigaction(signal, &action, &former);
    if (former.sa_handler != SIG_DFL) ::sigaction(signal, &former, nullptr);  // a sanitizer's
  }
  std::set_terminate(on_terminate);
  ::on_exit(on_exit_of_process, nullptr);
  std::at_quick_exit(on_quick_exit);
}

CrashReports::~CrashReports() {
  prepared.ending = true;
}

void report_crashes_to(const std::filesystem::path& status) {
  const std::string path = status.string();
  if (path.size() + 5 > sizeof prepared.status) return;
  copy(path.empty() ? "" : path + ".new", prepared.temporary);
  copy(path, prepared.status);
  // Those registered last run first: before the destructors of libraries that were loaded since
  // main began, which a thread of training may still need.
  if (prepared.process != 0) ::on_exit(on_exit_of_process, nullptr);
}

}  // namespace dsv3
