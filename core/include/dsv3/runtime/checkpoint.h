// Checkpoints on disk: folders of safetensors with a manifest, written atomically, verified on
// load.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

/// What a rank puts in: tensors by unique key (bytes on the host stay alive until save returns).
struct CheckpointContent {
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss;
  std::map<std::string, safetensors::View> tensors;
  /// Data cursor, RNG, config and plugin digests, conventions, world size, strategy ... Numbers
  /// must be finite (JSON has no others; see number_to_json).
  Json state;
  std::map<std::string, std::string> files;  ///< further files by name, verified like the tensors
};

/// A checkpoint on disk.
struct StoredCheckpoint {
  std::filesystem::path folder;  ///< .../checkpoints/step-N
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss;
  Json manifest;  ///< format, step, tokens, val_loss, files [{name, bytes, sha256}], state, sha256
                  ///< of the rest
};

/// The checkpoints/ folder of a run.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_best);
  /// Writes step-N.tmp-<nonce>/ (rank-00000.safetensors fsynced, then manifest.json), renames to
  /// step-N, fsyncs the parent; then deletes what is neither newest nor among the best by val_loss
  /// (NaN is never best). Removes leftovers of killed saves first. A step that is there and
  /// verifies is kept as it is; one that does not verify is replaced. What cannot be deleted is a
  /// warning. On error (ExitCode::checkpoint) nothing that was there is lost, and the temporary
  /// folder is removed. One process at a time.
  StoredCheckpoint save(const CheckpointContent& content);
  /// What a save that was killed had left to do, for a run that goes on from step `newest`: removes
  /// its leftovers and the older checkpoints that it would have deleted. What cannot be deleted is
  /// a warning.
  void clean_up(int64_t newest);
  /// Newest that verifies (sizes and sha256 of every file); says in the log what it passed over.
  /// nullopt = none.
  std::optional<StoredCheckpoint> newest() const;
  /// Lowest val_loss that verifies.
  std::optional<StoredCheckpoint> best() const;
  std::vector<StoredCheckpoint> all() const;  ///< readable manifests, oldest first, not verified

 private:
  std::filesystem::path folder_;
  int64_t keep_best_;
};

/// Writes one checkpoint as `folder`, which must not be there yet, atomically as
/// CheckpointStore::save does. Throws dsv3::Error (ExitCode::checkpoint).
StoredCheckpoint write_checkpoint(const std::filesystem::path& folder,
                                  const CheckpointContent& content);

/// Verifies one checkpoint folder; throws dsv3::Error (ExitCode::checkpoint) naming the file and
/// the cause.
StoredCheckpoint verify_checkpoint(const std::filesystem::path& folder);

}  // namespace dsv3
