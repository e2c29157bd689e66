// The files that are mapped into memory, by address.
#pragma once

#include <array>
#include <atomic>
#include <string>
#include <sys/types.h>

#include <dsv3/support/fs.h>

namespace dsv3::fs {

/// A mapped file. Never freed, because a signal handler may read it at any time.
struct MappedFile {
  std::atomic<const char*> begin{nullptr};  // null = unused
  size_t size = 0;
  std::string path;
  dev_t device = 0;
  ino_t inode = 0;
  MappedFile* next = nullptr;  // in the list of all
};

/// Records the mapping of the open file `descriptor`. Thread-safe.
MappedFile* register_mapping(const char* begin, size_t size, const Path& path, int descriptor);
void unregister_mapping(MappedFile& file);
/// Whether the file at the mapping's path is still the mapped one, but smaller.
bool has_shrunk(const MappedFile& file);

/// Returns the path of the file that is mapped at `address`, or null. May be called in a signal
/// handler.
const char* mapped_path_at(const void* address);
/// "<path> shrank or became unreadable while it was in use; ..." May be called in a signal handler.
std::array<char, 4352> shrunk_message(const char* path);

}  // namespace dsv3::fs
