// Simulates the content of a disk after a power cut.
#pragma once

#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

#include <dsv3/support/fs.h>

/// A model of a disk that keeps only synced data: the content of a file at its last fsync, and the
/// names in a folder at the folder's last fsync. All other changes (writes, new files, renames,
/// removals) may be lost or survive independently, as POSIX allows. The model identifies files by
/// inode, so it does not track renames.
class PowerCut {
 public:
  enum class Unsynced {
    lost,      ///< all unsynced changes are lost
    no_data,   ///< all names survive, but the content of unsynced files is lost
    all_data,  ///< all content survives, but unsynced names are lost
    random,    ///< random for every name and file; files may be torn or contain zeros
  };

  /// Everything below `root` initially counts as synced.
  explicit PowerCut(std::filesystem::path root) : root_(std::move(root)) { sync_tree(root_); }
  PowerCut(const PowerCut&) = delete;
  ~PowerCut() {
    for (const auto& [number, inode] : inodes_) ::close(inode.descriptor);
  }

  /// Records syncs. The fault hook calls this before each system call. Thread-safe.
  void before(dsv3::fs::Call call, const std::filesystem::path& path) {
    if (call != dsv3::fs::Call::sync || !path.string().starts_with(root_.string())) return;
    std::lock_guard lock(mutex_);
    sync(path);
  }

  /// Simulates the power cut: creates the folder `into` with one of the states that `root` may have
  /// afterwards.
  void cut(const std::filesystem::path& into, Unsynced fate, uint64_t seed) {
    std::lock_guard lock(mutex_);
    fate_ = fate;
    random_.seed(seed);
    leave(note(root_), into);
  }

 private:
  using Entries = std::map<std::string, ino_t>;
  struct Inode {
    int descriptor = -1;  // kept open, so that the inode number is not reused
    bool folder = false;
    std::string content;  // synced
    Entries entries;      // synced
    std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor); }
  };

  ino_t note(const std::filesystem::path& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat info {};
    if (descriptor == -1 || ::fstat(descriptor, &info) != 0)
      throw std::runtime_error("PowerCut cannot open " + path.string());
    Inode inode;
    inode.descriptor = descriptor;
    inode.folder = S_ISDIR(info.st_mode);
    if (!inodes_.try_emplace(info.st_ino, inode).second) ::close(descriptor);
    return info.st_ino;
  }

  Entries entries_now(const Inode& folder) {
    Entries entries;
    std::error_code removed;
    for (std::filesystem::directory_iterator it(folder.path(), removed), end; it != end; ++it)
      entries[it->path().filename().string()] = note(it->path());
    return entries;
  }

  static std::string content_now(const Inode& file) {
    std::ifstream stream(file.path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  void sync(const std::filesystem::path& path) {
    const ino_t number = note(path);
    if (inodes_[number].folder) {
      Entries entries = entries_now(inodes_[number]);
      inodes_[number].entries = std::move(entries);
    } else {
      inodes_[number].content = content_now(inodes_[number]);
    }
  }

  void sync_tree(const std::filesystem::path& path) {
    sync(path);
    if (!std::filesystem::is_directory(path)) return;
    for (const auto& entry : std::filesystem::directory_iterator(path)) sync_tree(entry.path());
  }

  bool coin() { return random_() % 2 == 0; }
  bool keeps_names() { return fate_ == Unsynced::random ? coin() : fate_ == Unsynced::no_data; }

  void leave(ino_t number, const std::filesystem::path& into) {
    if (!inodes_.at(number).folder) {
      std::ofstream(into, std::ios::binary) << content_left(inodes_.at(number));
      return;
    }
    std::filesystem::create_directory(into);
    const Entries now = entries_now(inodes_.at(number)), synced = inodes_.at(number).entries;
    std::set<std::string> names;
    for (const Entries& entries : {now, synced})
      for (const auto& [name, inode] : entries) names.insert(name);
    for (const std::string& name : names) {
      const Entries& chosen = keeps_names() ? now : synced;
      if (auto entry = chosen.find(name); entry != chosen.end()) leave(entry->second, into / name);
    }
  }

  std::string content_left(const Inode& file) {
    const std::string now = content_now(file);
    if (now == file.content || fate_ == Unsynced::all_data) return now;
    if (fate_ != Unsynced::random || coin()) return file.content;
    if (now.empty() || coin()) return now;
    // Tears the file after the synced content, or at any byte if synced content was overwritten.
    const size_t safe = now.starts_with(file.content) ? file.content.size() : 0;
    const size_t whole = safe + random_() % (now.size() - safe);
    return now.substr(0, whole) + std::string(coin() ? 0 : now.size() - whole, '\0');
  }

  std::filesystem::path root_;
  std::mutex mutex_;
  std::map<ino_t, Inode> inodes_;
  Unsynced fate_ = Unsynced::lost;
  std::mt19937_64 random_;
};
