// The folder of one run: its name, the files in it, and the lock that keeps a second process out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace dsv3 {

/// Names of runs: [A-Za-z0-9._-]{1,128}, but not "." or "..".
bool is_run_name(const std::string& name);

/// An open run folder, locked until the object goes away: no other process can train in it. Errors
/// are dsv3::Error with ExitCode::usage when the user's choice of the folder is to blame.
class RunFolder {
 public:
  /// A new run OUTPUT/NAME. Throws when it exists. An empty name is replaced by a made, unused one
  /// such as amber-falcon-217.
  static RunFolder create(const std::filesystem::path& output, const std::string& name);
  /// A run to go on with. An unknown name throws, naming similar ones, and makes nothing.
  static RunFolder open(const std::filesystem::path& output, const std::string& name);
  /// The run if it is there, else a new one (`--resume auto`). The name must not be empty.
  static RunFolder open_or_create(const std::filesystem::path& output, const std::string& name);

  ~RunFolder();
  RunFolder(RunFolder&&) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;

  const std::filesystem::path& path() const { return path_; }  ///< absolute
  std::string name() const { return path_.filename().string(); }
  bool created() const { return created_; }  ///< false: the folder was there before

  std::filesystem::path config() const { return path_ / "config.yaml"; }  ///< resolved
  std::filesystem::path experiment() const {
    return path_ / "experiment.yaml";
  }  ///< as the user wrote it
  std::filesystem::path provenance() const { return path_ / "provenance.json"; }
  std::filesystem::path log() const { return path_ / "log.txt"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path samples() const { return path_ / "samples"; }
  std::filesystem::path status() const { return path_ / "status.json"; }

  /// Replaces status.json: {"state", "exit_code" (null while running), "step", "message", "time",
  /// "host", "pid"}. `state` is one of running, finished, failed, preempted, interrupted.
  void write_status(const std::string& state, std::optional<int> exit_code, int64_t step,
                    const std::string& message) const;

  /// Removes a run that never began, and the folders above it that were made for it and are empty.
  void remove();

 private:
  RunFolder(std::filesystem::path path, bool created, std::vector<std::filesystem::path> made);
  std::filesystem::path path_;
  bool created_;
  std::vector<std::filesystem::path> made_;  // folders above path_, innermost first
  int lock_ = -1;
};

}  // namespace dsv3
