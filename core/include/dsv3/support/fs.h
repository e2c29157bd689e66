// File access for the core: atomic and synced writes, and errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace dsv3::fs {

using Path = std::filesystem::path;

/// System calls that change the file system. Each call is passed to the fault hook before it runs.
enum class Call { open = 1, write, sync, rename, mkdir, remove };

/// Tests only: sets a hook that runs before each writing system call. For rename, it receives the
/// new name. The hook returns 0 to let the call proceed or an errno (ENOSPC, EIO) to make it fail.
/// It may also end the process. Pass {} to remove it.
void set_fault_hook(std::function<int(Call, const Path&)> hook);

/// A file that is written without buffering: each write() is one write(2), except after short
/// writes. Errors throw dsv3::Error with the path, the cause and, for a full disk, the needed and
/// free bytes.
class Writer {
 public:
  explicit Writer(const Path& path);  ///< creates or truncates
  static Writer append(const Path& path);  ///< fails for a symbolic link
  ~Writer();
  Writer(Writer&&) noexcept;
  void write(const void* bytes, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void sync();   ///< fsync
  void close();  ///< throws if close(2) fails, unlike the destructor
  const Path& path() const { return path_; }

 private:
  Writer(const Path& path, int flags);
  Path path_;
  int fd_ = -1;
};

/// Returns the file's content. Throws if the file cannot be read or is larger than `limit` bytes.
std::string read(const Path& path, uint64_t limit = UINT64_MAX);
/// Passes the file's content to `use` in order, in pieces of at most 1 MiB. Throws like read().
void read_pieces(const Path& path, const std::function<void(std::string_view)>& use,
                 uint64_t limit = UINT64_MAX);
/// Writes to a temporary file next to `path`, fsyncs, renames it to `path` and fsyncs the folder.
void write_atomically(const Path& path, std::string_view content);
/// Returns an unused name next to `path`: "<path>.tmp-<8 random hex digits>".
Path temporary_name(const Path& path);
/// Removes the temporary files and folders that killed processes left in `folder`. No other process
/// may be writing there.
void remove_temporaries(const Path& folder);
/// Creates one folder; returns false if the path already exists.
bool make_folder(const Path& path);
/// Creates a folder and its parents if they do not exist.
void make_folders(const Path& path);
void rename(const Path& from, const Path& to);
void sync_folder(const Path& path);
/// Removes a file, or a folder and its content, without following symbolic links. Does nothing if
/// the path does not exist.
void remove_all(const Path& path);

/// A read-only mapping of a whole regular file. If the file shrinks while it is mapped, reading the
/// lost pages ends the process with ExitCode::data and a message that names the file.
class Mapping {
 public:
  explicit Mapping(const Path& path);
  ~Mapping();
  Mapping(Mapping&&) noexcept;
  /// Throws dsv3::Error (ExitCode::data) if the file has shrunk. The bytes between its new end and
  /// the end of that page read as zeros.
  void check() const;
  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view view() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
  struct MappedFile* file_ = nullptr;
};

}  // namespace dsv3::fs
