// Checkpoints on disk: folders of safetensors files with a manifest, saved atomically.
#pragma once

#include <optional>

#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// The tensors of one rank, by unique name. Their memory on the host must stay valid until save()
/// returns.
struct CheckpointContent {
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss = {};
  std::map<std::string, safetensors::View> tensors = {};
  /// Everything else that a run needs to resume, such as the data position, config, plugin digests,
  /// conventions, world size and strategy. Numbers must be finite, because JSON has no NaN or
  /// infinity (see number_to_json).
  Json state = {};
  bool replaces = false;  ///< replaces an intact checkpoint of the same step
  std::map<std::string, std::string> files =
      {};  ///< content of additional files by name; checksummed like the tensors
};

/// A checkpoint on disk.
struct StoredCheckpoint {
  std::filesystem::path folder;  ///< .../checkpoints/step-N
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss;
  /// Fields: format, step, tokens, val_loss, files [{name, bytes, sha256}], state, and the sha256
  /// of all other fields.
  Json manifest;
};

/// A run's checkpoints/ folder.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_best);
  /// Removes temporary folders left by interrupted saves, writes step-N.tmp-<nonce>/ (fsyncs
  /// rank-00000.safetensors, then manifest.json), renames it to step-N and fsyncs the parent
  /// folder. Then deletes checkpoints that are neither the newest nor among the best by val_loss
  /// (NaN is never among the best). A failed deletion is only a warning. If a checkpoint for step N
  /// already exists, it is kept if it is intact and replaced if it is damaged. On error
  /// (ExitCode::checkpoint), existing checkpoints remain and the temporary folder is removed. Only
  /// one process may save at a time.
  StoredCheckpoint save(const CheckpointContent& content);
  /// Finishes an interrupted save for a run that resumes from step `newest`: removes the temporary
  /// folder and the older checkpoints that the save would have deleted. Failures are
  /// logged as warnings.
  void clean_up(int64_t newest);

  /// Whether the folder contains no checkpoints, not even damaged ones.
  bool empty() const;

  /// Call this if newest() returns nullopt. Throws dsv3::Error (ExitCode::checkpoint) that says why
  /// the newest checkpoint is damaged. Returns if there is none.
  void fail_if_damaged() const;
  /// Returns the newest intact checkpoint, or nullopt. A checkpoint is intact if all its files have
  /// the recorded size and sha256. Logs a warning for each checkpoint that it skips.
  std::optional<StoredCheckpoint> newest() const;
  /// Returns the intact checkpoint with the lowest val_loss, or nullopt.
  std::optional<StoredCheckpoint> best() const;
  /// Returns all checkpoints with a readable manifest, oldest first. Does not verify their files.
  std::vector<StoredCheckpoint> all() const;

 private:
  std::filesystem::path folder_;
  int64_t keep_best_;
};

/// Writes one checkpoint to `folder`, which must not exist yet, as atomically as
/// CheckpointStore::save. Throws dsv3::Error (ExitCode::checkpoint).
StoredCheckpoint write_checkpoint(const std::filesystem::path& folder,
                                  const CheckpointContent& content);

/// Verifies a checkpoint's checksums. The dsv3::Error that it throws (ExitCode::checkpoint) names
/// the file and the cause.
StoredCheckpoint verify_checkpoint(const std::filesystem::path& folder);

}  // namespace dsv3
