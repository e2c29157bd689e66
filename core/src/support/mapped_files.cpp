#include "support/mapped_files.h"

#include <cstdio>
#include <mutex>
#include <sys/stat.h>
#include <vector>

namespace dsv3::fs {
namespace {

std::atomic<MappedFile*> first{nullptr};

/// Unused records, guarded by the mutex. Never destroyed, like the records.
struct Unused {
  std::mutex mutex;
  std::vector<MappedFile*> records;
};

Unused& unused() {
  static Unused& instance = *new Unused;
  return instance;
}

}  // namespace

MappedFile* register_mapping(const char* begin, size_t size, const Path& path, int descriptor) {
  struct stat info {};
  ::fstat(descriptor, &info);
  const std::lock_guard lock(unused().mutex);
  std::vector<MappedFile*>& records = unused().records;
  const bool is_new = records.empty();
  MappedFile* file = is_new ? new MappedFile : records.back();
  if (!is_new) records.pop_back();
  file->size = size;
  file->path = path.string();
  file->device = info.st_dev;
  file->inode = info.st_ino;
  file->begin = begin;
  if (is_new) {
    file->next = first;
    first = file;
  }
  return file;
}

void unregister_mapping(MappedFile& file) {
  const std::lock_guard lock(unused().mutex);
  file.begin = nullptr;
  unused().records.push_back(&file);
}

bool has_shrunk(const MappedFile& file) {
  struct stat info {};
  return ::stat(file.path.c_str(), &info) == 0 && info.st_dev == file.device &&
         info.st_ino == file.inode && static_cast<size_t>(info.st_size) < file.size;
}

const char* mapped_path_at(const void* address) {
  const char* at = static_cast<const char*>(address);
  for (const MappedFile* file = first; file; file = file->next)
    if (const char* begin = file->begin; begin && at >= begin && at < begin + file->size)
      return file->path.c_str();
  return nullptr;
}

std::array<char, 4352> shrunk_message(const char* path) {
  std::array<char, 4352> text;
  std::snprintf(text.data(), text.size(),
                "%s shrank or became unreadable while it was in use; restore it and start again, "
                "and replace files instead of writing to them",
                path);
  return text;
}

}  // namespace dsv3::fs
