// All file writing of the core goes through here: atomic, synced, with errors that name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace dsv3::fs {

using Path = std::filesystem::path;

/// A system call that writing makes; the fault hook sees each before it happens.
enum class Call { open = 1, write, sync, rename, mkdir, remove };

/// Tests only: called before each writing system call (rename: with the new name). Return 0 to let
/// it happen, an errno (ENOSPC, EIO) to make it fail, or do not return at all. Pass {} to take it
/// off.
void set_fault_hook(std::function<int(Call, const Path&)> hook);

/// A file being written. Nothing is buffered across calls: one write() is one write(2) unless the
/// system takes less. Errors throw dsv3::Error with the path, the cause, and for a full disk the
/// needed and free bytes.
class Writer {
 public:
  explicit Writer(const Path& path);  ///< creates or truncates
  static Writer append(const Path& path);
  ~Writer();
  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) = delete;
  void write(const void* bytes, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void sync();   ///< fsync
  void close();  ///< throws what close(2) reports; the destructor does not
  const Path& path() const { return path_; }

 private:
  Writer(const Path& path, int flags);
  Path path_;
  int fd_ = -1;
};

/// The whole file; throws when it cannot be read or is larger than `limit` bytes.
std::string read(const Path& path, uint64_t limit = UINT64_MAX);
/// Hands the file's bytes to `use` in order, in pieces of at most 1 MiB. Read errors throw.
void read_pieces(const Path& path, const std::function<void(std::string_view)>& use);
/// Writes to a temporary neighbour, fsyncs, renames over `path`, fsyncs the folder.
void write_atomically(const Path& path, std::string_view content);
/// A name beside `path` that nobody uses: "<path>.tmp-<8 random hex digits>".
Path temporary_name(const Path& path);
/// Removes what killed processes left in `folder` under such names. No other process may be writing
/// there.
void remove_temporaries(const Path& folder);
/// Makes one folder; false = something of this name was there already.
bool make_folder(const Path& path);
/// Makes a folder and its parents where they are missing.
void make_folders(const Path& path);
void rename(const Path& from, const Path& to);
void sync_folder(const Path& path);
/// Removes a file or a folder with all it holds; links are not followed. Nothing there = nothing to
/// do.
void remove_all(const Path& path);

/// A read-only mapping of a whole regular file, which nobody may shorten meanwhile.
class Mapping {
 public:
  explicit Mapping(const Path& path);
  ~Mapping();
  Mapping(Mapping&&) noexcept;
  Mapping& operator=(Mapping&&) = delete;
  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view view() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace dsv3::fs
