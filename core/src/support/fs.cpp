#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <mutex>
#include <random>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

namespace dsv3::fs {
namespace {

using Hook = std::function<int(Call, const Path&)>;

std::mutex hook_mutex;
std::shared_ptr<const Hook> hook;  // guarded by hook_mutex
std::atomic<bool> hooked{false};

/// 0, or the errno with which the call is to fail.
int fault(Call call, const Path& path) {
  if (!hooked.load(std::memory_order_acquire)) return 0;
  std::shared_ptr<const Hook> current;
  {
    std::lock_guard lock(hook_mutex);
    current = hook;
  }
  return current ? (*current)(call, path) : 0;
}

/// Makes a system call that returns -1 and errno on errors; retries when a signal interrupted it.
template <class F>
auto system_call(Call call, const Path& path, F&& make) -> decltype(make()) {
  decltype(make()) result;
  do {
    const int error = fault(call, path);
    result = error ? -1 : make();
    if (error) errno = error;
  } while (result == -1 && errno == EINTR);
  return result;
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

[[noreturn]] void fail(const char* what, const Path& path, int error, uint64_t needed = 0) {
  std::string text =
      std::string("cannot ") + what + " " + path.string() + ": " + std::strerror(error);
  if (error == ENOSPC || error == EDQUOT) {
    std::error_code ignored;
    auto space =
        std::filesystem::space(path.parent_path().empty() ? "." : path.parent_path(), ignored);
    if (needed) text += "; " + human(needed) + " needed";
    if (!ignored) text += std::string(needed ? "," : ";") + " " + human(space.available) + " free";
    text += ". Free some space or write to another disk";
  }
  if (error == EROFS || error == EACCES || error == EPERM)
    text +=
        ". Make it writable for user " + std::to_string(::geteuid()) + " or name another folder";
  if (error == EFBIG)
    text += ". The shell or the file system limits the size of files: see ulimit -f";
  throw Error(text);
}

/// A descriptor that is closed on the way out.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

int open_for_reading(const Path& path) {
  int fd;
  do {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  } while (fd == -1 && errno == EINTR);
  if (fd == -1) fail("read", path, errno);
  return fd;
}

uint64_t size_of(const Descriptor& file, const Path& path) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail("read", path, errno);
  if (!S_ISREG(info.st_mode)) throw Error("cannot read " + path.string() + ": not a regular file");
  return static_cast<uint64_t>(info.st_size);
}

/// Bytes read into `buffer`, 0 at the end of the file.
size_t read_some(const Descriptor& file, const Path& path, char* buffer, size_t size) {
  ssize_t count;
  do {
    count = ::read(file.get(), buffer, size);
  } while (count == -1 && errno == EINTR);
  if (count == -1) fail("read", path, errno);
  return static_cast<size_t>(count);
}

Path parent_of(const Path& path) {
  Path parent = path.parent_path();
  return parent.empty() ? Path(".") : parent;
}

}  // namespace

void set_fault_hook(std::function<int(Call, const Path&)> new_hook) {
  std::lock_guard lock(hook_mutex);
  hook = new_hook ? std::make_shared<const Hook>(std::move(new_hook)) : nullptr;
  hooked.store(hook != nullptr, std::memory_order_release);
}

Writer::Writer(const Path& path) : Writer(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC) {}

Writer Writer::append(const Path& path) {
  return Writer(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
}

Writer::Writer(const Path& path, int flags) : path_(path) {
  fd_ = system_call(Call::open, path_, [&] { return ::open(path_.c_str(), flags, 0666); });
  if (fd_ == -1) fail("write", path_, errno);
}

Writer::~Writer() {
  if (fd_ >= 0) ::close(fd_);
}

Writer::Writer(Writer&& other) noexcept : path_(std::move(other.path_)), fd_(other.fd_) {
  other.fd_ = -1;
}

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
  if (system_call(Call::sync, path_, [&] { return ::fsync(fd_); }) != 0) fail("sync", path_, errno);
}

void Writer::close() {
  int fd = fd_;
  fd_ = -1;  // the descriptor is gone even when close reports an error
  if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) fail("close", path_, errno);
}

std::string read(const Path& path, uint64_t limit) {
  Descriptor file(open_for_reading(path));
  uint64_t size = size_of(file, path);
  if (size > limit) {
    throw Error("cannot read " + path.string() + ": it has " + human(size) +
                ", more than the limit of " + human(limit));
  }
  std::string content(size, '\0');
  size_t have = 0;
  while (have < size) {
    size_t count = read_some(file, path, content.data() + have, size - have);
    if (count == 0) break;  // it became shorter meanwhile
    have += count;
  }
  content.resize(have);
  return content;
}

void read_pieces(const Path& path, const std::function<void(std::string_view)>& use) {
  Descriptor file(open_for_reading(path));
  size_of(file, path);
  std::vector<char> buffer(1 << 20);
  while (size_t count = read_some(file, path, buffer.data(), buffer.size())) {
    use({buffer.data(), count});
  }
}

void write_atomically(const Path& path, std::string_view content) {
  static std::atomic<uint64_t> serial{0};
  Path temporary = path;
  temporary += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(++serial);
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
  static const char* const digits = "0123456789abcdef";
  std::random_device random;
  std::string nonce;
  for (int i = 0; i < 8; ++i) nonce += digits[random() % 16];
  return path.string() + ".tmp-" + nonce;
}

bool make_folder(const Path& path) {
  if (system_call(Call::mkdir, path, [&] { return ::mkdir(path.c_str(), 0777); }) == 0) return true;
  if (errno == EEXIST) return false;
  fail("make folder", path, errno);
}

void make_folders(const Path& path) {
  std::error_code ignored;
  if (path.empty() || std::filesystem::is_directory(path, ignored)) return;
  Path parent = parent_of(path);
  if (parent != path) make_folders(parent);
  if (make_folder(path)) {
    sync_folder(parent);
  } else if (!std::filesystem::is_directory(path, ignored)) {
    throw Error("cannot make folder " + path.string() +
                ": a file of that name is in the way. Move it away or name another folder");
  }
}

void rename(const Path& from, const Path& to) {
  if (system_call(Call::rename, to, [&] { return ::rename(from.c_str(), to.c_str()); }) != 0) {
    int error = errno;
    fail(("rename " + from.string() + " to").c_str(), to, error);
  }
}

void sync_folder(const Path& path) {
  Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() == -1) fail("sync", path, errno);
  // Some network file systems cannot sync a folder and say EINVAL; there is nothing more to do on
  // them.
  if (system_call(Call::sync, path, [&] { return ::fsync(folder.get()); }) != 0 &&
      errno != EINVAL) {
    fail("sync", path, errno);
  }
}

void remove_all(const Path& path) {
  std::error_code error;
  auto status = std::filesystem::symlink_status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) return;
  if (error) fail("remove", path, error.value());
  bool folder = std::filesystem::is_directory(status);
  if (folder) {
    std::vector<Path> entries;
    for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
         it.increment(error)) {
      entries.push_back(it->path());
    }
    if (error) fail("list", path, error.value());
    for (const Path& entry : entries) fs::remove_all(entry);
  }
  int result = system_call(Call::remove, path,
                           [&] { return folder ? ::rmdir(path.c_str()) : ::unlink(path.c_str()); });
  if (result != 0 && errno != ENOENT) fail("remove", path, errno);
}

Mapping::Mapping(const Path& path) {
  Descriptor file(open_for_reading(path));
  size_ = size_of(file, path);
  if (size_ == 0) return;  // an empty mapping is not allowed, and not needed
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) fail("map", path, errno);
  data_ = static_cast<const char*>(address);
}

Mapping::~Mapping() {
  if (data_) ::munmap(const_cast<char*>(data_), size_);
}

Mapping::Mapping(Mapping&& other) noexcept : data_(other.data_), size_(other.size_) {
  other.data_ = nullptr;
  other.size_ = 0;
}

}  // namespace dsv3::fs
