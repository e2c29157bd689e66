#include <atomic>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fcntl.h>
#include <set>
#include <thread>

#include <c10/util/StringUtil.h>

#include <dsv3/runtime/failure.h>
#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/sha256.h>

#include "checkpoint/manifest.h"
#include "ranks/exchange.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

const std::string kPrefix = "step-";
const char* const kNoCleanUp = "cannot remove temporary files left by an interrupted save";

std::string folder_name(int64_t step) {
  return kPrefix + std::to_string(step);
}

/// Returns N for "step-N" and nullopt for any other name, including "step-007" and temporary names.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  return folder_name(step) == name ? std::optional(step) : std::nullopt;
}

/// Returns the steps that have a checkpoint folder, in increasing order.
std::vector<int64_t> steps_in(const stdfs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  stdfs::directory_iterator entry(folder, error), end;
  for (; !error && entry != end; entry.increment(error))
    if (auto step = step_of(entry->path().filename().string())) steps.push_back(*step);
  if (error && error != std::errc::no_such_file_or_directory)
    throw Error("cannot list " + folder.string() + ": " + error.message(), ExitCode::checkpoint);
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// Returns the checkpoints with a finite validation loss, lowest loss first.
std::vector<StoredCheckpoint> best_first(std::vector<StoredCheckpoint> stored) {
  std::erase_if(
      stored, [](const StoredCheckpoint& c) { return !c.val_loss || !std::isfinite(*c.val_loss); });
  std::stable_sort(stored.begin(), stored.end(), [](const auto& a, const auto& b) {
    return *a.val_loss != *b.val_loss ? *a.val_loss < *b.val_loss : a.step > b.step;
  });
  return stored;
}

/// Runs `f`. Logs errors as warnings, because a failed cleanup must not make a save fail.
template <class F>
void or_warn(const char* what, F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    log::warning(std::string("checkpoints: ") + what + ": " + error.what());
  }
}

/// Renames the folder before removing it. If the process is killed during the removal, this leaves
/// a temporary folder rather than an incomplete checkpoint.
void remove_checkpoint(const stdfs::path& folder) {
  stdfs::path aside = fs::temporary_name(folder);
  fs::rename(folder, aside);
  fs::sync_folder(folder.parent_path());
  fs::remove_all(aside);
}

/// Removes all checkpoints except the newest and the `keep_best` with the lowest validation loss.
void remove_old(const std::vector<StoredCheckpoint>& all, int64_t newest, int64_t keep_best) {
  std::set<int64_t> retained{newest};
  const std::vector<StoredCheckpoint> best = best_first(all);
  for (int64_t i = 0; i < std::min<int64_t>(keep_best, std::ssize(best)); ++i)
    retained.insert(best[i].step);
  for (const StoredCheckpoint& stored : all)
    if (!retained.contains(stored.step))
      or_warn("cannot remove an old checkpoint", [&] { remove_checkpoint(stored.folder); });
}

/// What a rank stores in a checkpoint.
struct Share {
  std::vector<ManifestFile> files;  // at most one
  PieceLists pieces;
};

std::string text_of(const Share& share) {
  return Json{{"files", files_to_json(share.files)}, {"pieces", pieces_to_json(share.pieces)}}
      .dump();
}

/// Adds the share of another rank, as text_of() returns it.
void add_share(Share& all, const std::string& text) {
  const Json json = parse_json(text, "the description of another rank's file");
  std::set<std::string> names;
  for (const ManifestFile& file : files_from_json(json.at("files"))) {
    names.insert(file.name);
    all.files.push_back(file);
  }
  add_pieces(all.pieces, pieces_from_json(json.at("pieces"), names));
}

/// Writes a rank's tensors, if it has any. Rank 0 always has a file.
Share write_share(const stdfs::path& folder, const CheckpointContent& content, int64_t rank) {
  Share share{{}, content.pieces};
  if (content.tensors.empty() && rank > 0) return share;
  const std::string name = tensor_file(rank);
  share.files.push_back({name, safetensors::write(folder / name, content.tensors)});
  for (auto& [tensor, list] : share.pieces)
    for (Piece& piece : list.pieces) piece.file = name;
  return share;
}

/// Writes what only rank 0 writes, the manifest last. `shares` are those of all ranks.
void write_manifest(const stdfs::path& folder, const CheckpointContent& content,
                    const std::vector<std::string>& shares) {
  Share all;
  for (const std::string& share : shares) add_share(all, share);
  require_complete(all.pieces);
  for (const auto& [name, text] : content.files) {
    fs::write_atomically(folder / name, text);
    all.files.push_back({name, {text.size(), sha256(text)}});
  }
  fs::Writer manifest(folder / kManifestName);
  manifest.write(make_manifest(content, all.files, all.pieces));
  manifest.sync();
  manifest.close();
  fs::sync_folder(folder);
}

/// Calls `f` on rank 0. If it throws, all ranks throw.
template <class F>
void run_on_first(Communicator& ranks, const F& f) {
  run_together(ranks, [&] {
    if (ranks.rank() == 0) f();
  });
}

/// Gives a complete checkpoint its name. Replaces an older one, which may be intact or damaged.
void publish(const stdfs::path& temporary, const stdfs::path& folder, bool intact) {
  std::error_code ignored;
  if (intact) {
    // Swaps the two in one step. If the file system cannot do that, the intact one stays.
    ::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE);
    fs::remove_all(temporary);
    return;
  }
  if (stdfs::exists(folder, ignored)) remove_checkpoint(folder);
  fs::rename(temporary, folder);
}

/// Calls `f`, and names the checkpoint in its errors.
template <class F>
auto while_saving(int64_t step, const F& f) try {
  return f();
} catch (const std::exception& error) {
  const bool lost = current_exception_code() == ExitCode::peer_lost;
  throw Error(c10::str("cannot save the checkpoint of step ", step, ": ", error.what()),
              lost ? ExitCode::peer_lost : ExitCode::checkpoint);
}

/// Reads the manifest of the checkpoint folder step-N and requires its step to be N. Does not check
/// the files.
StoredCheckpoint read_stored(const stdfs::path& folder) {
  StoredCheckpoint stored = read_manifest(folder);
  if (auto step = step_of(folder.filename().string()); step && *step != stored.step)
    throw Error(folder.string() +
                    ": the folder's name does not match its manifest, which is for step " +
                    std::to_string(stored.step),
                ExitCode::checkpoint);
  return stored;
}

/// Compares the file's size and digest with the manifest.
void verify_file(const stdfs::path& path, const safetensors::Written& expected) {
  auto fail = [&](const std::string& cause) {
    throw Error(path.string() + ": " + cause, ExitCode::checkpoint);
  };
  std::error_code error;
  uint64_t bytes = stdfs::file_size(path, error);
  if (error)
    fail("cannot be read: " + error.message() +
         "; copy the whole folder again, or use another checkpoint");
  if (bytes != expected.bytes)
    fail(c10::str("has ", bytes, " bytes, but the manifest says ", expected.bytes,
                  "; copy it again, or use another checkpoint"));
  std::string digest;
  try {
    digest = sha256_of_file(path);
  } catch (const Error& failure) {
    throw Error(failure.what(), ExitCode::checkpoint);
  }
  if (digest != expected.sha256)
    fail(
        "SHA-256 differs from the manifest: the file was changed or damaged; copy it again, or use "
        "another checkpoint");
}

/// Returns the checkpoint at `folder` if it is intact. Otherwise logs a warning and returns
/// nullopt. Collective.
std::optional<StoredCheckpoint> verified(const stdfs::path& folder, Communicator& ranks) try {
  return verify_checkpoint(folder, ranks);
} catch (const Error& error) {
  if (error.code() == ExitCode::peer_lost) throw;
  log::warning("skipping a damaged checkpoint: " + std::string(error.what()));
  return std::nullopt;
}

}  // namespace

struct PendingCheckpoint {
  PendingCheckpoint() = default;
  PendingCheckpoint(const PendingCheckpoint&) = delete;
  ~PendingCheckpoint() {
    if (thread.joinable()) thread.join();
    // Unless a rank was lost, no other rank writes to the folder any more. What a lost rank writes
    // is removed by the next save.
    if (rank == 0 && !published && !temporary.empty())
      or_warn("cannot remove an incomplete checkpoint", [&] { fs::remove_all(temporary); });
  }

  /// Writes this rank's file.
  void write() noexcept {
    try {
      if (!temporary.empty()) share = write_share(temporary, content, rank);
    } catch (...) {
      failure = std::current_exception();
    }
    written = true;
  }
  /// Returns when the file is written. Throws what write() could not.
  void wait() {
    if (thread.joinable()) thread.join();
    if (failure) std::rethrow_exception(failure);
  }

  CheckpointContent content;
  int64_t rank = 0;
  stdfs::path temporary;   // the same on all ranks; empty = an intact checkpoint stays
  bool intact = false;     // on rank 0: whether the checkpoint exists and is intact
  bool published = false;  // on rank 0
  Share share;
  std::exception_ptr failure;
  std::atomic<bool> written = false;
  std::jthread thread;
};

StoredCheckpoint verify_checkpoint(const stdfs::path& folder) {
  return verify_checkpoint(folder, *local_communicator());
}

StoredCheckpoint verify_checkpoint(const stdfs::path& folder, Communicator& ranks) {
  StoredCheckpoint stored;
  run_together(ranks, [&] {
    stored = read_stored(folder);
    const std::vector<ManifestFile> files = files_of(stored.manifest);
    for (auto i = size_t(ranks.rank()); i < files.size(); i += size_t(ranks.size()))
      verify_file(folder / files[i].name, files[i].written);
  });
  return stored;
}

StoredCheckpoint write_checkpoint(const stdfs::path& folder, const CheckpointContent& content) {
  std::error_code ignored;
  if (stdfs::exists(folder, ignored))
    throw Error(folder.string() + " already exists; choose another folder", ExitCode::usage);
  const stdfs::path temporary = fs::temporary_name(folder);
  const stdfs::path parent = folder.has_parent_path() ? folder.parent_path() : ".";
  try {
    fs::make_folders(parent);
    fs::make_folder(temporary);
    write_manifest(temporary, content, {text_of(write_share(temporary, content, 0))});
    fs::rename(temporary, folder);
    fs::sync_folder(parent);
  } catch (const std::exception& error) {
    or_warn("cannot remove an incomplete checkpoint", [&] { fs::remove_all(temporary); });
    throw Error("cannot write " + folder.string() + ": " + error.what(), ExitCode::checkpoint);
  }
  return read_stored(folder);
}

CheckpointStore::CheckpointStore(stdfs::path folder, int64_t keep_best)
    : folder_(std::move(folder)), keep_best_(keep_best) {}

StoredCheckpoint CheckpointStore::save(const CheckpointContent& content) {
  return save(content, *local_communicator());
}

StoredCheckpoint CheckpointStore::save(const CheckpointContent& content, Communicator& ranks) {
  const std::shared_ptr<PendingCheckpoint> pending = prepare(content, ranks);
  pending->write();
  return finish(*pending, ranks);
}

std::shared_ptr<PendingCheckpoint> CheckpointStore::start(const CheckpointContent& content,
                                                          Communicator& ranks) {
  std::shared_ptr<PendingCheckpoint> pending = prepare(content, ranks);
  pending->thread = std::jthread([p = pending.get()] { p->write(); });
  return pending;
}

bool CheckpointStore::is_written(const PendingCheckpoint& pending) {
  return pending.written;
}

std::shared_ptr<PendingCheckpoint> CheckpointStore::prepare(const CheckpointContent& content,
                                                            Communicator& ranks) {
  auto pending = std::make_shared<PendingCheckpoint>();
  pending->content = content;
  pending->rank = ranks.rank();
  const stdfs::path folder = folder_ / folder_name(content.step);
  while_saving(content.step, [&] {
    run_on_first(ranks, [&] {
      fs::make_folders(folder_);
      or_warn(kNoCleanUp, [&] { fs::remove_temporaries(folder_); });
      std::error_code ignored;
      pending->intact = stdfs::exists(folder, ignored) && verified(folder, *local_communicator());
      if (pending->intact && !content.replaces) return;
      pending->temporary = fs::temporary_name(folder);
      fs::make_folder(pending->temporary);
    });
    pending->temporary = broadcast_text(ranks, pending->temporary.string());
  });
  return pending;
}

StoredCheckpoint CheckpointStore::finish(PendingCheckpoint& pending, Communicator& ranks) {
  const CheckpointContent& content = pending.content;
  const stdfs::path folder = folder_ / folder_name(content.step), &temporary = pending.temporary;
  return while_saving(content.step, [&] {
    run_together(ranks, [&] { pending.wait(); });
    const std::vector<std::string> shares = gather_texts(ranks, text_of(pending.share));
    Json manifest;
    run_on_first(ranks, [&] {
      if (!temporary.empty()) {
        write_manifest(temporary, content, shares);
        publish(temporary, folder, pending.intact);
      }
      pending.published = true;
      fs::sync_folder(folder_);
      manifest = read_manifest(folder).manifest;
      or_warn("cannot clean up", [&] { remove_old(all(), content.step, keep_best_); });
    });
    const std::string text = broadcast_text(ranks, manifest.dump());
    return parse_manifest(folder, parse_json(text, kManifestName));
  });
}

bool CheckpointStore::empty() const {
  return steps_in(folder_).empty();
}

void CheckpointStore::fail_if_damaged() const {
  const std::vector<int64_t> steps = steps_in(folder_);
  if (steps.empty()) return;
  try {
    verify_checkpoint(folder_ / folder_name(steps.back()));
  } catch (const Error& error) {
    const bool one = steps.size() == 1;
    throw Error((one ? "the only checkpoint in " : "all checkpoints in ") + folder_.string() +
                    (one ? " is damaged: " : " are damaged; the newest: ") + error.what(),
                ExitCode::checkpoint);
  }
}

void CheckpointStore::clean_up(int64_t newest) {
  or_warn(kNoCleanUp, [&] { fs::remove_temporaries(folder_); });
  std::vector<StoredCheckpoint> older = all();
  std::erase_if(older, [&](const StoredCheckpoint& stored) { return stored.step > newest; });
  or_warn("cannot clean up", [&] { remove_old(older, newest, keep_best_); });
}

std::optional<StoredCheckpoint> CheckpointStore::newest() const {
  return newest(*local_communicator());
}

std::optional<StoredCheckpoint> CheckpointStore::newest(Communicator& ranks) const {
  Json steps = Json::array();  // rank 0 lists them, because folders may look different elsewhere
  run_on_first(ranks, [&] { steps = steps_in(folder_); });
  steps = parse_json(broadcast_text(ranks, steps.dump()), "the list of checkpoints");
  for (auto step = steps.rbegin(); step != steps.rend(); ++step)
    if (auto stored = verified(folder_ / folder_name(step->get<int64_t>()), ranks)) return stored;
  return std::nullopt;
}

std::optional<StoredCheckpoint> CheckpointStore::best() const {
  for (const StoredCheckpoint& candidate : best_first(all()))
    if (auto stored = verified(candidate.folder, *local_communicator())) return stored;
  return std::nullopt;
}

std::vector<StoredCheckpoint> CheckpointStore::all() const {
  std::vector<StoredCheckpoint> stored;
  for (int64_t step : steps_in(folder_)) {
    try {
      stored.push_back(read_stored(folder_ / folder_name(step)));
    } catch (const Error& error) {
      log::debug("not a checkpoint: " + std::string(error.what()));
    }
  }
  return stored;
}

}  // namespace dsv3
