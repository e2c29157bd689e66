#include "faults.h"

#include <array>
#include <csignal>
#include <cstdio>
#include <dlfcn.h>
#include <execinfo.h>
#include <string_view>
#include <unistd.h>

#include "call_site.h"
#include "memory.h"

namespace fake_cuda {
namespace {

using Sigaction = int (*)(int, const struct sigaction*, struct sigaction*);

/// SIGSEGV handler that the program installed.
struct sigaction program_handler {};

Sigaction libc_sigaction() {
  static const auto function = reinterpret_cast<Sigaction>(dlsym(RTLD_NEXT, "sigaction"));
  return function;
}

FaultCallback fault_callback = nullptr;

void report(const char* text) {
  if (fault_callback) fault_callback(text);
  for (const std::string_view part : {"fake_cuda: ", text, ":\n"})
    (void)!write(STDERR_FILENO, part.data(), part.size());
  std::array<void*, 40> frames{};
  const int count = backtrace(frames.data(), int(frames.size()));
  for (int i = 0; i < count; ++i) {
    Dl_info info{};
    if (!dladdr(frames[size_t(i)], &info) || !info.dli_fname) continue;
    dprintf(STDERR_FILENO, "%s(%s) [%p]\n", library_name(info.dli_fname).c_str(),
            info.dli_sname ? info.dli_sname : "", frames[size_t(i)]);
  }
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (on_device(info->si_addr)) report("host code accesses device memory");
  if (replaces_host(info->si_addr)) report("the device accesses host memory");
  if (program_handler.sa_flags & SA_SIGINFO) {
    if (program_handler.sa_sigaction) return program_handler.sa_sigaction(signal, info, context);
  } else if (program_handler.sa_handler != SIG_DFL && program_handler.sa_handler != SIG_IGN) {
    return program_handler.sa_handler(signal);
  }
  std::signal(signal, SIG_DFL);  // after this function returns, the access is repeated and ends the
                                 // process
}

int install(const struct sigaction& wanted) {
  program_handler = wanted;
  struct sigaction installed = wanted;
  installed.sa_sigaction = &on_fault;
  installed.sa_flags |= SA_SIGINFO;
  return libc_sigaction()(SIGSEGV, &installed, nullptr);
}

}  // namespace

void report_faults() {
  struct sigaction current {};
  libc_sigaction()(SIGSEGV, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == &on_fault) return;
  install(current);
}

void fake_cuda_on_fault(FaultCallback callback) {
  fault_callback = callback;
}

}  // namespace fake_cuda

/// Replaces libc's sigaction(), so that a SIGSEGV handler installed by the program runs after
/// on_fault() has reported the access.
extern "C" __attribute__((visibility("default"))) int sigaction(int signal,
                                                                const struct sigaction* action,
                                                                struct sigaction* old) {
  using namespace fake_cuda;
  if (signal != SIGSEGV) return libc_sigaction()(signal, action, old);
  const struct sigaction previous = program_handler;
  const int result = action ? install(*action) : 0;
  if (old) *old = previous;
  return result;
}
