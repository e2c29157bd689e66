// Checkpoints on disk: folders of safetensors files with a manifest, saved atomically.
#pragma once

#include <memory>
#include <optional>
#include <set>

#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>

namespace dsv3 {

class Communicator;

/// Elements `begin` to `end` of a tensor, in row-major order.
struct Piece {
  std::string file;  ///< that holds the piece, as the tensor "<name of the whole tensor>/<begin>"
  int64_t begin = 0, end = 0;
};

/// A tensor that no file holds as a whole. Its pieces cover every element exactly once.
struct PieceList {
  std::vector<int64_t> shape = {};  ///< of the whole tensor
  bool one_value = false;  ///< whether each piece is stored as one value for all of its elements
  std::vector<Piece> pieces = {};
};
using PieceLists = std::map<std::string, PieceList>;  ///< by the name of the whole tensor

/// What one rank adds to a checkpoint. Only rank 0's step, tokens, val_loss, state, replaces and
/// files are used. The memory of the tensors must stay valid until save() returns.
struct CheckpointContent {
  int64_t step = 0, tokens = 0;
  std::optional<double> val_loss = {};
  /// The tensors in this rank's file: whole ones by their name, which no other rank may use, and
  /// pieces by the name of the whole tensor and their first element.
  std::map<std::string, safetensors::View> tensors = {};
  PieceLists pieces = {};  ///< which of `tensors` are pieces; `file` is not set yet
  std::vector<std::shared_ptr<const void>> memory = {};  ///< owns the memory of `tensors`
  std::set<std::string> borrowed = {};                   ///< which of `tensors` training may change
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
  /// Fields: format, step, tokens, val_loss, files [{name, bytes, sha256}], pieces (see
  /// docs/checkpoints.md; only if there are any), state, and the sha256 of all other fields.
  Json manifest;
};

/// A checkpoint of which this rank writes its file on a thread of its own. Its destructor waits for
/// that thread, and on rank 0 removes the temporary folder unless finish() was called.
struct PendingCheckpoint;

/// A run's checkpoints/ folder.
class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path folder, int64_t keep_best);
  /// Removes temporary folders left by interrupted saves, writes step-N.tmp-<nonce>/ (every rank
  /// fsyncs rank-NNNNN.safetensors, then rank 0 manifest.json), renames it to step-N and fsyncs the
  /// parent folder. Then deletes checkpoints that are neither the newest nor among the best by
  /// val_loss (NaN is never among the best). A failed deletion is only a warning. If a checkpoint
  /// for step N already exists, it is kept if it is intact and replaced if it is damaged. On error
  /// (ExitCode::checkpoint; ExitCode::peer_lost if a rank is lost), existing checkpoints remain and
  /// the temporary folder is removed. If some ranks fail, the others throw an error that names one
  /// of them. Collective. Only one run may save at a time.
  StoredCheckpoint save(const CheckpointContent& content, Communicator& ranks);
  /// The same, with this process as the only rank.
  StoredCheckpoint save(const CheckpointContent& content);
  /// Starts to save `content`, whose tensors must not change until finish(). Collective, and throws
  /// like save().
  std::shared_ptr<PendingCheckpoint> start(const CheckpointContent& content, Communicator& ranks);
  /// Whether this rank's file was written, or could not be.
  static bool is_written(const PendingCheckpoint& pending);
  /// Waits until all ranks have written their files, and completes the checkpoint. Collective, and
  /// throws like save().
  StoredCheckpoint finish(PendingCheckpoint& pending, Communicator& ranks);
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
  /// The same, collectively: each rank verifies some of the files, and all get the same result.
  std::optional<StoredCheckpoint> newest(Communicator& ranks) const;
  /// Returns the intact checkpoint with the lowest val_loss, or nullopt.
  std::optional<StoredCheckpoint> best() const;
  /// Returns all checkpoints with a readable manifest, oldest first. Does not verify their files.
  std::vector<StoredCheckpoint> all() const;

 private:
  /// Creates the temporary folder. Collective.
  std::shared_ptr<PendingCheckpoint> prepare(const CheckpointContent& content, Communicator& ranks);

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
/// The same, collectively: each rank verifies some of the files. If one finds damage, all throw.
StoredCheckpoint verify_checkpoint(const std::filesystem::path& folder, Communicator& ranks);

}  // namespace dsv3
