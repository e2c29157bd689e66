// A run's folder: its name, its files, and the lock that keeps other processes out.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/support/json.h>

namespace dsv3 {

/// Returns the content of provenance.json, which says when, where and how a run was started:
/// {"time", "command", "directory", "host", "pid", "dsv3", "libtorch", "compiler", "git":
/// {"folder", "commit", "branch", "remote", "dirty"} or null, "threads", "cpu": {"model", "cores",
/// "capability", "features"}}. A run can be reproduced bit for bit only with the same threads and
/// capability, and on a GPU only with the same "gpu" (see gpu_provenance.h), which the caller adds.
/// `source` is the folder whose git commit is recorded; untracked files do not make it dirty. Never
/// throws: a value that cannot be determined is null.
Json provenance(const std::vector<std::string>& command, const std::filesystem::path& source);

/// Returns the content of the provenance.json in a run folder. If the file does not exist, returns
/// an empty object. Throws dsv3::Error (ExitCode::checkpoint) if dsv3 has not written it.
Json read_provenance(const std::filesystem::path& run);

/// Whether `name` is a valid run name: [A-Za-z0-9._-]{1,128}, but not "." or "..".
bool is_run_name(const std::string& name);
/// Throws dsv3::Error (ExitCode::usage) if `name` is not a valid run name.
void check_run_name(const std::string& name);

/// Returns the files that a run stores of its tokenizer, by the tokenizer's options: "file" ->
/// .../tokenizer/file.json. `run` is the run folder; empty if it stores none.
std::map<std::string, std::filesystem::path> stored_tokenizer(const std::filesystem::path& run);

/// Returns the name of the run in `output` to which a tracker has given `id`, such as the id of an
/// MLflow run; "" if there is none.
std::string run_with_tracker_id(const std::filesystem::path& output, const std::string& id);

/// Returns advice to append to an error message, a line with the --plugin-path flags for the
/// plugins of the run that are not part of this build or installation; "" if there are none.
std::string plugin_advice(const std::filesystem::path& run);

/// Writes to status.json of an ended run why it failed, if the file says something else: a rank
/// that was killed could not write it, and the first rank may not know why it lost the others. Does
/// nothing if `folder` has no such file. Never throws.
void correct_status(const std::filesystem::path& folder, int exit_code,
                    const std::string& cause) noexcept;

/// An open run folder, locked for the object's lifetime so that no other process can train in it.
/// Opening the folder removes temporary files left by killed processes, except for checkpoints.
/// Errors are dsv3::Error, with ExitCode::usage if the user chose the wrong folder.
class RunFolder {
 public:
  /// Creates the run OUTPUT/NAME; throws if it exists. If `name` is empty, uses the first unused
  /// name <experiment>-<date>-<number>, such as nano-2026-11-27-1.
  static RunFolder create(const std::filesystem::path& output, const std::string& name,
                          const std::string& experiment = "run");
  /// Throws if create() would throw for this name, without creating anything.
  static void require_new(const std::filesystem::path& output, const std::string& name);
  /// Opens an existing run to resume it. If the name is unknown, throws an error that suggests
  /// similar names, and creates nothing.
  static RunFolder open(const std::filesystem::path& output, const std::string& name);
  /// Opens the run if it exists, otherwise creates it (`--resume auto`). `name` must not be empty.
  static RunFolder open_or_create(const std::filesystem::path& output, const std::string& name);

  /// For the other ranks of a run, whose first rank has opened the folder: takes no lock.
  static RunFolder join(const std::filesystem::path& path);

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
  std::filesystem::path log(int64_t rank = 0) const {
    return path_ / (rank == 0 ? "log.txt" : "log-rank-" + std::to_string(rank) + ".txt");
  }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  /// Everything else that the run records: parameters, tags, samples, checkpoints.
  std::filesystem::path records() const { return path_ / "events.jsonl"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path samples() const { return path_ / "samples"; }
  /// Folder that records what each tracker has acknowledged.
  std::filesystem::path trackers() const { return path_ / "trackers"; }
  std::filesystem::path status() const { return path_ / "status.json"; }
  /// Folder with copies of the tokenizer's files.
  std::filesystem::path tokenizer() const { return path_ / "tokenizer"; }

  /// Whether the path still leads to the folder that was opened.
  bool exists() const;
  /// Throws dsv3::Error (ExitCode::checkpoint) unless exists(), so that nothing is written to a
  /// folder that took its place.
  void require_exists() const;

  /// Replaces status.json: {"state", "exit_code" (null while running), "step", "message", "time",
  /// "host", "pid"}. `state` is one of running, finished, failed, preempted, interrupted.
  void write_status(const std::string& state, std::optional<int> exit_code, int64_t step,
                    const std::string& message) const;

  /// Removes the folder of a run that never started, and any empty parent folders that were created
  /// for it.
  void remove();

 private:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)), created_(false) {}
  RunFolder(std::filesystem::path path, bool created,
            std::vector<std::filesystem::path> created_parents);
  std::filesystem::path path_;
  bool created_;
  std::vector<std::filesystem::path> created_parents_;  // innermost first
  int lock_ = -1;
};

}  // namespace dsv3
