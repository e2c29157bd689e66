#include "call_site.h"

#include <array>
#include <cstdlib>
#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <memory>
#include <sstream>
#include <string_view>
#include <unistd.h>

namespace fake_cuda {
namespace {

bool is_runtime(std::string_view library) {
  for (const char* name : {"libtorch", "libc10", "libc.so", "libstdc++", "libgomp", "ld-linux"})
    if (library.starts_with(name)) return true;
  return false;
}

std::string demangled(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(symbol, nullptr, nullptr, &status), &std::free);
  std::string name = status == 0 ? text.get() : symbol;
  if (const size_t arguments = name.find('('); arguments != std::string::npos && arguments > 0)
    name.resize(arguments);
  return name;
}

}  // namespace

std::string library_name(const char* path) {
  std::string name = path;
  char target[512];
  const ssize_t size =
      name.starts_with("/proc/") ? readlink(path, target, sizeof target) : ssize_t{-1};
  if (size > 0) name.assign(target, size_t(size));  // "/memfd:libx.so (deleted)"
  name = name.substr(name.find_last_of("/:") + 1);
  return name.substr(0, name.find(' '));
}

std::vector<std::string> call_site(int count) {
  std::array<void*, 96> frames{};
  const int depth = backtrace(frames.data(), int(frames.size()));
  std::vector<std::string> site;
  for (int i = 1; i < depth && int(site.size()) < count; ++i) {
    Dl_info info{};
    // A return address may point to the first byte of the next function, so look up the byte
    // before.
    const char* address = static_cast<const char*>(frames[size_t(i)]) - 1;
    if (!dladdr(address, &info) || !info.dli_fname) continue;
    const std::string library = library_name(info.dli_fname);
    if (is_runtime(library)) continue;
    std::ostringstream frame;
    frame << library;
    if (info.dli_sname) {
      const std::string function = demangled(info.dli_sname);
      if (function.starts_with("at::")) continue;  // an inline function of LibTorch
      frame << ' ' << function;
    } else {
      frame << "+0x" << std::hex << (address - static_cast<const char*>(info.dli_fbase));
    }
    site.push_back(frame.str());
  }
  return site;
}

}  // namespace fake_cuda
