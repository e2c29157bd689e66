#include "conformance/backtrace.h"

#include <array>
#include <csignal>
#include <cstdio>
#include <dlfcn.h>
#include <execinfo.h>
#include <fmt/format.h>
#include <link.h>
#include <sys/socket.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>

#include "support/host.h"

namespace dsv3::conformance {
namespace {

constexpr size_t kMostFrames = 8;

// What the signal handler needs.
int report_socket = -1;
const void* library_start = nullptr;
std::array<char, 64 << 10> handler_stack;  // a stack overflow leaves no other

extern "C" void on_crash(int signal) {
  std::signal(signal, SIG_DFL);  // ends the process when it is raised again below
  std::array<void*, 256> addresses;
  const int count = ::backtrace(addresses.data(), int(addresses.size()));
  std::array<char, 512> message;
  size_t size = size_t(std::snprintf(message.data(), message.size(), "{\"frames\": ["));
  size_t frames = 0;
  for (int i = 0; i < count && frames < kMostFrames; ++i) {
    Dl_info info;
    if (!::dladdr(addresses[size_t(i)], &info) || info.dli_fbase != library_start) continue;
    // A return address may belong to the line after the call.
    const auto offset = static_cast<const char*>(addresses[size_t(i)]) - 1 -
                        static_cast<const char*>(library_start);
    size += size_t(std::snprintf(message.data() + size, message.size() - size, "%s%td",
                                 frames++ ? ", " : "", offset));
  }
  size += size_t(std::snprintf(message.data() + size, message.size() - size, "]}"));
  if (frames > 0) (void)!::send(report_socket, message.data(), size, 0);
  ::raise(signal);
}

const void* start_of(const std::filesystem::path& library) {
  void* handle = ::dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  const link_map* map = nullptr;
  if (!handle || ::dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0) return nullptr;
  Dl_info info;
  return ::dladdr(map->l_ld, &info) ? info.dli_fbase : nullptr;
}

}  // namespace

void report_crashes_to(int socket, const std::filesystem::path& library) {
  report_socket = socket;
  library_start = start_of(library);
  void* frame;
  ::backtrace(&frame, 1);  // the first call allocates memory, so make it now
  const stack_t stack{
      .ss_sp = handler_stack.data(), .ss_flags = 0, .ss_size = handler_stack.size()};
  ::sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_handler = &on_crash;
  action.sa_flags = SA_ONSTACK | SA_NODEFER;
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT})
    ::sigaction(signal, &action, nullptr);
}

std::string frame_lines(const Json& frames, const std::filesystem::path& library) {
  std::string offsets, plain;
  for (const Json& frame : frames) {
    const auto offset = fmt::format("{:#x}", frame.get<int64_t>());
    offsets += " " + offset;
    plain += "\n  in " + library.filename().string() + "+" + offset;
  }
  const auto output =
      output_of("addr2line -Cfpe " + shell_quoted(library.string()) + offsets + " 2>/dev/null");
  if (!output || output->empty()) return plain;
  std::string lines = "\n" + *output;
  for (size_t at = 0; (at = lines.find('\n', at)) != std::string::npos; at += 6)
    lines.replace(at, 1, "\n  in ");
  return lines;
}

}  // namespace dsv3::conformance
