// Checkpoints on disk: folders of safetensors files with a manifest, saved atomically.
#pragma once

#include <optional>

#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// A rank's tensors by unique key. The tensors' host memory must stay alive until save() returns.
struct CheckpointContent {
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss = {};
  std::map<std::string, safetensors::View> tensors = {};
  /// Data position, config, plugin digests, conventions, world size, strategy ... Numbers must be
  /// finite, because JSON has no NaN or infinity (see number_to_json).
  Json state = {};
  std::map<std::string, std::string> files =
      {};  ///< additional files by name, verified like the tensors
};

/// A checkpoint on disk.
struct StoredCheckpoint {
  std::filesystem::path folder;  ///< .../checkpoints/step-N
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss;
  /// format, step, tokens, val_loss, files [{name, bytes, sha256}], state, and the sha256 of
  /// everything else.
  Json manifest;
};

/// A run's checkpoints/ folder.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_best);
  /// Removes temporary folders left by killed saves, writes step-N.tmp-<nonce>/ (fsyncs
  /// rank-00000.safetensors, then manifest.json), renames it to step-N and fsyncs the parent. Then
  /// deletes checkpoints that are neither the newest nor among the best by val_loss (NaN is never
  /// among the best); a failed deletion is only a warning. Keeps an intact checkpoint of the same
  /// step and replaces a damaged one. On error (ExitCode::checkpoint), existing checkpoints remain
  /// and the temporary folder is removed. Only one process may save at a time.
  StoredCheckpoint save(const CheckpointContent& content);
  /// Finishes an interrupted save for a run that resumes from step `newest`: removes the temporary
  /// folder and the older checkpoints that the save would have deleted. Failures are only warnings.
  void clean_up(int64_t newest);
  /// Returns the newest intact checkpoint, which is one whose files all have the recorded size and
  /// sha256, or nullopt. Logs a warning for each checkpoint it skips.
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

/// Verifies a checkpoint. Throws dsv3::Error (ExitCode::checkpoint) that names the file and the
/// cause.
StoredCheckpoint verify_checkpoint(const std::filesystem::path& folder);

}  // namespace dsv3
