#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <random>
#include <regex>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "support/mapped_files.h"

namespace dsv3::fs {
namespace {

using Hook = std::function<int(Call, const Path&)>;

std::mutex hook_mutex;
Hook hook;  // guarded by hook_mutex

/// Calls the fault hook, which tests install, to determine whether the call should fail. Returns
/// the errno to fail with, or 0.
int fault(Call call, const Path& path) {
  std::unique_lock lock(hook_mutex);
  const Hook current = hook;
  lock.unlock();
  return current ? current(call, path) : 0;
}

/// Repeats a system call that returns -1 as long as errno is EINTR.
template <class F>
auto retried(const F& make) {
  auto result = make();
  while (result == -1 && errno == EINTR) result = make();
  return result;
}

/// Makes a system call that writes, unless the fault hook makes it fail.
template <class F>
auto system_call(Call call, const Path& path, const F& make) {
  return retried([&] {
    const int error = fault(call, path);
    if (!error) return make();
    errno = error;
    return decltype(make())(-1);
  });
}

std::string human(uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  const char* units[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit < 3; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s", value, units[unit]);
  return text;
}

Path parent_of(const Path& path) {
  Path parent = path.parent_path();
  return parent.empty() ? Path(".") : parent;
}

[[noreturn]] void fail(const char* what, const Path& path, int error, uint64_t needed = 0) {
  std::string text =
      std::string("cannot ") + what + " " + path.string() + ": " + std::strerror(error);
  if (error == ENOSPC || error == EDQUOT) {
    std::error_code ignored;
    auto space = std::filesystem::space(parent_of(path), ignored);
    if (needed) text += "; " + human(needed) + " needed";
    if (!ignored) text += std::string(needed ? "," : ";") + " " + human(space.available) + " free";
    text += ". Free some space or write to another disk";
  }
  if (error == EROFS || error == EACCES || error == EPERM)
    text += std::string(". Make it ") +
            (std::string_view(what) == "read" ? "readable" : "writable") + " for user " +
            std::to_string(::geteuid()) + " or choose another folder";
  if (error == EFBIG) text += ". The shell or the file system limits file sizes: see ulimit -f";
  throw Error(text);
}

/// Opens a file for reading. Does not wait for a writer if it is a FIFO. `action` is the verb in
/// the error message "cannot <action> <path>".
struct Descriptor {
  explicit Descriptor(const Path& path, const char* action = "read", int flags = 0)
      : number(retried(
            [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags); })) {
    if (number == -1) fail(action, path, errno);
  }
  ~Descriptor() { ::close(number); }
  Descriptor(const Descriptor&) = delete;
  const int number;
};

uint64_t size_of(const Descriptor& file, const Path& path) {
  struct stat info {};
  if (::fstat(file.number, &info) != 0) fail("read", path, errno);
  if (!S_ISREG(info.st_mode)) throw Error("cannot read " + path.string() + ": not a regular file");
  return static_cast<uint64_t>(info.st_size);
}

/// Returns the entries of a folder; none if it does not exist.
std::vector<Path> entries_of(const Path& folder) {
  std::vector<Path> entries;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error))
    entries.push_back(it->path());
  if (error && error != std::errc::no_such_file_or_directory) fail("list", folder, error.value());
  return entries;
}

}  // namespace

void set_fault_hook(std::function<int(Call, const Path&)> new_hook) {
  std::lock_guard lock(hook_mutex);
  hook = std::move(new_hook);
}

Writer::Writer(const Path& path) : Writer(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC) {}

Writer Writer::append(const Path& path) {
  return Writer(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
}

Writer::Writer(const Path& path, int flags) : path_(path) {
  fd_ = system_call(Call::open, path_, [&] { return ::open(path_.c_str(), flags, 0666); });
  if (fd_ == -1) fail("write", path_, errno);
}

Writer::~Writer() {
  if (fd_ >= 0) ::close(fd_);
}

Writer::Writer(Writer&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

void Writer::write(const void* bytes, size_t size) {
  const char* next = static_cast<const char*>(bytes);
  while (size > 0) {
    ssize_t written = system_call(Call::write, path_, [&] { return ::write(fd_, next, size); });
    if (written == -1) fail("write", path_, errno, size);
    next += written;
    size -= static_cast<size_t>(written);
  }
}

void Writer::sync() {
  // FIFOs and devices cannot be synced and return EINVAL, which is ignored.
  if (system_call(Call::sync, path_, [&] { return ::fsync(fd_); }) != 0 && errno != EINVAL)
    fail("sync", path_, errno);
}

void Writer::close() {
  const int fd =
      std::exchange(fd_, -1);  // close releases the descriptor even if it reports an error
  if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) fail("close", path_, errno);
}

std::string read(const Path& path, uint64_t limit) {
  std::string content;
  read_pieces(
      path, [&](std::string_view piece) { content += piece; }, limit);
  return content;
}

void read_pieces(const Path& path, const std::function<void(std::string_view)>& use,
                 uint64_t limit) {
  const Descriptor file(path);
  if (const uint64_t size = size_of(file, path); size > limit)
    throw Error("cannot read " + path.string() + ": its size of " + human(size) +
                " exceeds the limit of " + human(limit));
  constexpr size_t piece = 1 << 20;
  const auto buffer = std::make_unique_for_overwrite<char[]>(piece);
  while (const ssize_t count = retried([&] { return ::read(file.number, buffer.get(), piece); })) {
    if (count == -1) fail("read", path, errno);
    use({buffer.get(), static_cast<size_t>(count)});
  }
}

void write_atomically(const Path& path, std::string_view content) {
  const Path temporary = temporary_name(path);
  try {
    Writer file(temporary);
    file.write(content);
    file.sync();
    file.close();
    fs::rename(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder(parent_of(path));
}

Path temporary_name(const Path& path) {
  char ending[16];
  std::snprintf(ending, sizeof ending, ".tmp-%08x", std::random_device{}());
  return path.string() + ending;
}

void remove_temporaries(const Path& folder) {
  const std::regex temporary("\\.tmp-[0-9a-f]{8}$");
  for (const Path& path : entries_of(folder))
    if (std::regex_search(path.filename().string(), temporary)) fs::remove_all(path);
}

bool make_folder(const Path& path) {
  if (system_call(Call::mkdir, path, [&] { return ::mkdir(path.c_str(), 0777); }) == 0) return true;
  if (errno == EEXIST) return false;
  fail("create folder", path, errno);
}

void make_folders(const Path& path) {
  std::error_code ignored;
  if (path.empty() || std::filesystem::is_directory(path, ignored)) return;
  Path parent = parent_of(path);
  if (parent != path) make_folders(parent);
  if (make_folder(path)) {
    sync_folder(parent);
  } else if (!std::filesystem::is_directory(path, ignored)) {
    throw Error("cannot create folder " + path.string() +
                ": a file with that name exists. Move it or choose another folder");
  }
}

void rename(const Path& from, const Path& to) {
  if (system_call(Call::rename, to, [&] { return ::rename(from.c_str(), to.c_str()); }) != 0) {
    int error = errno;
    fail(("rename " + from.string() + " to").c_str(), to, error);
  }
}

void sync_folder(const Path& path) {
  const Descriptor folder(path, "sync", O_DIRECTORY);
  // Some network file systems cannot sync a folder and return EINVAL, which is ignored.
  if (system_call(Call::sync, path, [&] { return ::fsync(folder.number); }) != 0 &&
      errno != EINVAL) {
    fail("sync", path, errno);
  }
}

void remove_all(const Path& path) {
  std::error_code error;
  auto status = std::filesystem::symlink_status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) return;
  if (error) fail("remove", path, error.value());
  const bool is_folder = std::filesystem::is_directory(status);
  if (is_folder)
    for (const Path& entry : entries_of(path)) fs::remove_all(entry);
  int result = system_call(Call::remove, path, [&] {
    return is_folder ? ::rmdir(path.c_str()) : ::unlink(path.c_str());
  });
  if (result != 0 && errno != ENOENT) fail("remove", path, errno);
}

Mapping::Mapping(const Path& path) {
  const Descriptor file(path);
  size_ = size_of(file, path);
  if (size_ == 0) return;  // mmap rejects empty mappings
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (address == MAP_FAILED) fail("map", path, errno);
  data_ = static_cast<const char*>(address);
  file_ = register_mapping(data_, size_, path, file.number);
}

Mapping::~Mapping() {
  if (!data_) return;
  unregister_mapping(*file_);
  ::munmap(const_cast<char*>(data_), size_);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      file_(std::exchange(other.file_, nullptr)) {}

void Mapping::check() const {
  if (!file_ || !has_shrunk(*file_)) return;
  throw Error(shrunk_message(file_->path.c_str()).data(), ExitCode::data);
}

}  // namespace dsv3::fs
