// A run's folder: its name, its files, and the lock that keeps other processes out.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/support/json.h>

namespace dsv3 {

/// When, where and how a run was started, for provenance.json: {"time", "command", "directory",
/// "host", "pid", "dsv3", "libtorch", "compiler", "git": {"folder", "commit", "dirty"} or null,
/// "threads", "cpu": {"model", "cores", "capability", "features"}}. A run can be reproduced bit for
/// bit only with the same threads and capability, and on a GPU only with the same "gpu" (see
/// gpu_provenance.h), which the caller adds. `source` is the folder whose git commit is recorded;
/// only tracked files make it dirty. Never throws: a value that cannot be determined is null.
Json provenance(const std::vector<std::string>& command, const std::filesystem::path& source);

/// Whether `name` is a valid run name: [A-Za-z0-9._-]{1,128}, but not "." or "..".
bool is_run_name(const std::string& name);
/// Throws dsv3::Error (ExitCode::usage) for any other name.
void check_run_name(const std::string& name);

/// An open run folder, locked for the object's lifetime: no other process can train in it. Opening
/// it removes the temporary files of killed processes, except for checkpoints. Errors are
/// dsv3::Error, with ExitCode::usage if the user chose the wrong folder.
class RunFolder {
 public:
  /// Creates the run OUTPUT/NAME; throws if it exists. An empty name is replaced by an unused
  /// random one such as amber-falcon-217.
  static RunFolder create(const std::filesystem::path& output, const std::string& name);
  /// Throws if create() would throw for this name. Creates nothing.
  static void require_new(const std::filesystem::path& output, const std::string& name);
  /// Opens a run to resume. If the name is unknown, throws with similar names and creates nothing.
  static RunFolder open(const std::filesystem::path& output, const std::string& name);
  /// Opens the run if it exists, otherwise creates it (`--resume auto`). `name` must not be empty.
  static RunFolder open_or_create(const std::filesystem::path& output, const std::string& name);

  ~RunFolder();
  RunFolder(RunFolder&&) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;

  const std::filesystem::path& path() const { return path_; }  ///< absolute
  std::string name() const { return path_.filename().string(); }
  bool created() const { return created_; }  ///< false if the folder existed before

  /// The resolved experiment.
  std::filesystem::path config() const { return path_ / "config.yaml"; }
  /// The experiment file as the user wrote it.
  std::filesystem::path experiment() const { return path_ / "experiment.yaml"; }
  std::filesystem::path provenance() const { return path_ / "provenance.json"; }
  std::filesystem::path log() const { return path_ / "log.txt"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path samples() const { return path_ / "samples"; }
  /// The events that each tracker has acknowledged.
  std::filesystem::path trackers() const { return path_ / "trackers"; }
  std::filesystem::path status() const { return path_ / "status.json"; }

  /// Replaces status.json: {"state", "exit_code" (null while running), "step", "message", "time",
  /// "host", "pid"}. `state` is one of running, finished, failed, preempted, interrupted.
  void write_status(const std::string& state, std::optional<int> exit_code, int64_t step,
                    const std::string& message) const;

  /// Removes a run that never started, and the empty parent folders that were created for it.
  void remove();

 private:
  RunFolder(std::filesystem::path path, bool created,
            std::vector<std::filesystem::path> created_parents);
  std::filesystem::path path_;
  bool created_;
  std::vector<std::filesystem::path> created_parents_;  // innermost first
  int lock_ = -1;
};

}  // namespace dsv3
