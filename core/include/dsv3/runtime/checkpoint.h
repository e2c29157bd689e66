// Checkpoints on disk: folders of safetensors files with a manifest, saved atomically.
#pragma once

#include <optional>

#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// A rank's tensors under unique keys. Their host memory must stay alive until save() returns.
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
  /// format, step, tokens, val_loss, files [{name, bytes, sha256}], state, and sha256 of the rest.
  Json manifest;
};

/// The checkpoints/ folder of a run.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_best);
  /// Removes temporary folders of killed saves, writes step-N.tmp-<nonce>/ (fsyncs
  /// rank-00000.safetensors, then manifest.json), renames it to step-N and fsyncs the parent. Then
  /// deletes checkpoints that are neither the newest nor among the best by val_loss (NaN is never
  /// among the best); a failed deletion is only a warning. An intact checkpoint of the same step is
  /// left as it is, a damaged one is replaced. On error (ExitCode::checkpoint) existing checkpoints
  /// stay and the temporary folder is removed. One process at a time.
  StoredCheckpoint save(const CheckpointContent& content);
  /// Finishes an interrupted save for a run that resumes from step `newest`: removes the temporary
  /// folder and the older checkpoints that the save would have deleted. Failures are only warnings.
  void clean_up(int64_t newest);
  /// The newest intact checkpoint, in which size and sha256 of every file match; nullopt = none.
  /// Logs a warning for each one skipped.
  std::optional<StoredCheckpoint> newest() const;
  /// The intact checkpoint with the lowest val_loss.
  std::optional<StoredCheckpoint> best() const;
  /// All checkpoints with a readable manifest, oldest first. Their files are not verified.
  std::vector<StoredCheckpoint> all() const;

 private:
  std::filesystem::path folder_;
  int64_t keep_best_;
};

/// Writes one checkpoint as `folder`, which must not exist yet, atomically like
/// CheckpointStore::save. Throws dsv3::Error (ExitCode::checkpoint).
StoredCheckpoint write_checkpoint(const std::filesystem::path& folder,
                                  const CheckpointContent& content);

/// Verifies a checkpoint. Throws dsv3::Error (ExitCode::checkpoint) with the file and the cause.
StoredCheckpoint verify_checkpoint(const std::filesystem::path& folder);

}  // namespace dsv3
