#include "plugin/image.h"

#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <sstream>
#include <sys/mman.h>
#include <unistd.h>

#include <dsv3/sdk/error.h>

#include "plugin/elf.h"
#include "plugin/owner.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

[[noreturn]] void fail(const std::string& text) {
  throw Error(text, ExitCode::plugin);
}

[[noreturn]] void fail_to_copy(const stdfs::path& library, int error) {
  fail("cannot copy plugin library " + library.string() + " to memory: " + std::strerror(error) +
       (error == EACCES  ? "; allow executable memory files (sysctl vm.memfd_noexec=0)"
        : error == EFBIG ? "; raise the limit for the size of files (ulimit -f)"
                         : ""));
}

int memory_file(const stdfs::path& library, std::string_view bytes) {
  const int fd = ::memfd_create(library.filename().string().substr(0, 200).c_str(),
                                MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail_to_copy(library, errno);
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno != EINTR) fail_to_copy(library, errno);
    if (count > 0) bytes.remove_prefix(size_t(count));
  }
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0)
    fail_to_copy(library, errno);
  return fd;
}

bool is_loaded(const std::string& name) {
  return ::dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD) != nullptr;
}

std::vector<std::string> entries_of(const std::string& run_path) {
  std::vector<std::string> entries;
  std::istringstream text(run_path.empty() ? "" : run_path + ":");
  for (std::string entry; std::getline(text, entry, ':');) entries.push_back(entry);
  return entries;
}

/// Returns the folders of a RUNPATH that start with $ORIGIN, the folder `origin`.
std::vector<stdfs::path> origin_folders(const std::string& run_path, const stdfs::path& origin) {
  std::vector<stdfs::path> folders;
  for (const std::string& entry : entries_of(run_path))
    for (const std::string_view name : {"$ORIGIN", "${ORIGIN}"})
      if (entry.starts_with(name)) folders.push_back(origin.string() + entry.substr(name.size()));
  return folders;
}

/// Rejects a library that would load code from the current folder.
void require_fixed_folders(const stdfs::path& library, const Dependencies& needed) {
  for (const std::string& entry : entries_of(needed.run_path))
    if (!entry.starts_with('/') && !entry.starts_with('$'))
      fail("the RUNPATH of " + library.string() + ", '" + needed.run_path + "', contains '" +
           entry +
           "', which is the current folder or relative to it; build the plugin with "
           "dsv3_add_plugin(), or use folders that start with / or $ORIGIN");
  for (const std::string& name : needed.names)
    if (name.find('/') != name.npos && !name.starts_with('/'))
      fail(library.string() + " needs '" + name +
           "', which is relative to the current folder; link that library by its name alone");
}

}  // namespace

stdfs::path sealed_copy(const stdfs::path& library, std::string_view bytes,
                        const std::string& digest) {
  static std::mutex mutex;
  static std::map<std::string, stdfs::path> copies;
  const std::lock_guard lock(mutex);
  stdfs::path& path = copies[digest];
  // With the process id, debuggers and profilers can open it too.
  if (path.empty())
    path = "/proc/" + std::to_string(::getpid()) + "/fd/" +
           std::to_string(memory_file(library, bytes));
  return path;
}

void load_dependencies(const stdfs::path& library, std::string_view bytes) {
  const Dependencies needed = dependencies_of(bytes);
  require_fixed_folders(library, needed);
  for (const std::string& name : needed.names) {
    if (is_loaded(name)) continue;
    for (const stdfs::path& folder : origin_folders(needed.run_path, library.parent_path())) {
      std::error_code failed;
      const stdfs::path file = stdfs::canonical(folder / name, failed);
      if (failed) continue;
      require_safe_owner(file, "library " + name + " of " + library.string());
      if (!::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL))
        fail("cannot load " + file.string() + ", which " + library.string() +
             " needs: " + ::dlerror());
      break;
    }
  }
}

}  // namespace dsv3
