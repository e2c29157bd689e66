#include <charconv>
#include <cmath>
#include <cstdio>
#include <fcntl.h>
#include <set>

#include <c10/util/StringUtil.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/sha256.h>

#include "checkpoint/manifest.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

const std::string kPrefix = "step-";
const char* const kTensorFile = "rank-00000.safetensors";
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

void write_all(const stdfs::path& folder, const CheckpointContent& content) {
  fs::make_folder(folder);
  std::vector<ManifestFile> files{
      {kTensorFile, safetensors::write(folder / kTensorFile, content.tensors)}};
  for (const auto& [name, text] : content.files) {
    fs::write_atomically(folder / name, text);
    files.push_back({name, {text.size(), sha256(text)}});
  }
  fs::Writer manifest(folder / kManifestName);
  manifest.write(make_manifest(content, files));
  manifest.sync();
  manifest.close();
  fs::sync_folder(folder);
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
/// nullopt.
std::optional<StoredCheckpoint> verified(const stdfs::path& folder) try {
  return verify_checkpoint(folder);
} catch (const Error& error) {
  log::warning("skipping a damaged checkpoint: " + std::string(error.what()));
  return std::nullopt;
}

}  // namespace

StoredCheckpoint verify_checkpoint(const stdfs::path& folder) {
  StoredCheckpoint stored = read_stored(folder);
  for (const ManifestFile& file : files_of(stored.manifest))
    verify_file(folder / file.name, file.written);
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
    write_all(temporary, content);
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
  stdfs::path folder = folder_ / folder_name(content.step);
  stdfs::path temporary = fs::temporary_name(folder);
  std::error_code ignored;
  try {
    fs::make_folders(folder_);
    or_warn(kNoCleanUp, [&] { fs::remove_temporaries(folder_); });
    bool exists = stdfs::exists(folder, ignored);
    std::optional<StoredCheckpoint> intact = exists ? verified(folder) : std::nullopt;
    if (!intact) {
      write_all(temporary, content);
      if (exists) remove_checkpoint(folder);
      fs::rename(temporary, folder);
    } else if (content.replaces) {
      write_all(temporary, content);
      // Swaps the two in one step. If the file system cannot do that, the intact one stays.
      ::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE);
      fs::remove_all(temporary);
    }
    fs::sync_folder(folder_);
    StoredCheckpoint stored = read_manifest(folder);
    or_warn("cannot clean up", [&] { remove_old(all(), content.step, keep_best_); });
    return stored;
  } catch (const std::exception& error) {
    or_warn("cannot remove an incomplete checkpoint", [&] { fs::remove_all(temporary); });
    throw Error(c10::str("cannot save the checkpoint of step ", content.step, ": ", error.what()),
                ExitCode::checkpoint);
  }
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
  std::vector<int64_t> steps = steps_in(folder_);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step)
    if (auto stored = verified(folder_ / folder_name(*step))) return stored;
  return std::nullopt;
}

std::optional<StoredCheckpoint> CheckpointStore::best() const {
  for (const StoredCheckpoint& candidate : best_first(all()))
    if (auto stored = verified(candidate.folder)) return stored;
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
