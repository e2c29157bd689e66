// Checkpoints on disk: folders of safetensors with a manifest, written atomically, verified on load.
#pragma once

#include <filesystem>
#include <functional>
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
  Json state;  ///< data cursor, RNG, config and plugin digests, conventions, world size, strategy ...
};

/// A verified checkpoint.
struct StoredCheckpoint {
  std::filesystem::path folder;  ///< .../checkpoints/step-N
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss;
  Json manifest;
};

/// The checkpoints/ folder of a run.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_best);
  /// Writes step-N.tmp-<nonce>/ (rank-00000.safetensors fsynced, then manifest.json), renames to step-N, fsyncs
  /// the parent; then deletes what is neither newest nor among the best by val_loss, and leftovers of
  /// killed saves. On error nothing that was there is lost, and the temporary folder is removed.
  StoredCheckpoint save(const CheckpointContent& content);
  /// Newest that verifies (sizes and sha256 of every file); says in the log what it passed over. nullopt = none.
  std::optional<StoredCheckpoint> newest() const;
  /// Lowest val_loss that verifies.
  std::optional<StoredCheckpoint> best() const;
  std::vector<StoredCheckpoint> all() const;  ///< readable manifests, oldest first, not verified

 private:
  std::filesystem::path folder_;
  int64_t keep_best_;
};

/// Verifies one checkpoint folder; throws dsv3::Error (ExitCode::checkpoint) naming the file and the cause.
StoredCheckpoint verify_checkpoint(const std::filesystem::path& folder);

}  // namespace dsv3
