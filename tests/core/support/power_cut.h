// What a disk may hold after a power cut.
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

/// A model of a disk that keeps only what was synced: the content of a file as its last fsync found
/// it, and the names in a folder as the fsync of that folder found them. All else (writes, new
/// files, renames, removals) may be lost or kept, each on its own, as POSIX allows. It asks the
/// real files by inode and not by name, so renames need no tracking.
class PowerCut {
 public:
  enum class Unsynced {
    lost,      ///< nothing that was not synced is there
    no_data,   ///< every name is as it was seen, the content of unsynced files is not
    all_data,  ///< every file has its content, names that were not synced are gone
    random,    ///< each name and each file has a fate of its own; files may be torn or hold zeros
  };

  /// All below `root` counts as synced.
  explicit PowerCut(std::filesystem::path root) : root_(std::move(root)) { sync_tree(root_); }
  PowerCut(const PowerCut&) = delete;
  ~PowerCut() {
    for (const auto& [number, inode] : inodes_) ::close(inode.descriptor);
  }

  /// For the fault hook: a call is about to happen. May be called by several threads.
  void before(dsv3::fs::Call call, const std::filesystem::path& path) {
    if (call != dsv3::fs::Call::sync || !path.string().starts_with(root_.string())) return;
    std::lock_guard lock(mutex_);
    sync(path);
  }

  /// Writes to the new folder `into` what may be left of `root`.
  void cut(const std::filesystem::path& into, Unsynced fate, uint64_t seed) {
    std::lock_guard lock(mutex_);
    fate_ = fate;
    random_.seed(seed);
    leave(note(root_), into);
  }

 private:
  using Entries = std::map<std::string, ino_t>;
  struct Inode {
    int descriptor = -1;  // held open, so that the number is not given to another file
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
    Inode made;
    made.descriptor = descriptor;
    made.folder = S_ISDIR(info.st_mode);
    if (!inodes_.try_emplace(info.st_ino, made).second) ::close(descriptor);
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
    // Torn: behind what was synced, or anywhere when that was overwritten.
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
