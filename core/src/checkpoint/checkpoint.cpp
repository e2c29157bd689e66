#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <unistd.h>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/sha256.h>

#include "checkpoint/manifest.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

const std::string kPrefix = "step-";
const char* const kTensorFile = "rank-00000.safetensors";

std::string folder_name(int64_t step) {
  return kPrefix + std::to_string(step);
}

/// N of "step-N"; nullopt for every other name, "step-007" and "step-7.tmp-x" included.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  int64_t step = 0;
  auto [rest, error] = std::from_chars(begin, end, step);
  if (error != std::errc() || rest != end || folder_name(step) != name) return std::nullopt;
  return step;
}

bool is_leftover(const std::string& name) {
  return name.starts_with(kPrefix) && name.find(".tmp-") != std::string::npos;
}

std::vector<std::string> names_in(const stdfs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  stdfs::directory_iterator it(folder, error), end;
  for (; !error && it != end; it.increment(error)) names.push_back(it->path().filename().string());
  if (error && error != std::errc::no_such_file_or_directory) {
    throw Error("cannot list " + folder.string() + ": " + error.message(), ExitCode::checkpoint);
  }
  return names;
}

/// Steps that have a folder, oldest first.
std::vector<int64_t> steps_in(const stdfs::path& folder) {
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(folder)) {
    if (auto step = step_of(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// Lower is better; what has no finite loss has no place in the order.
std::vector<StoredCheckpoint> best_first(std::vector<StoredCheckpoint> stored) {
  std::erase_if(
      stored, [](const StoredCheckpoint& c) { return !c.val_loss || !std::isfinite(*c.val_loss); });
  std::stable_sort(stored.begin(), stored.end(), [](const auto& a, const auto& b) {
    return *a.val_loss != *b.val_loss ? *a.val_loss < *b.val_loss : a.step > b.step;
  });
  return stored;
}

/// Runs what must not make a save fail.
template <class F>
void or_warn(const char* what, F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    log::warning(std::string("checkpoints: ") + what + ": " + error.what());
  }
}

/// Takes a folder out of sight first: killed half-way, it leaves a leftover and no torn checkpoint.
void remove_checkpoint(const stdfs::path& folder) {
  stdfs::path aside = fs::temporary_name(folder);
  fs::rename(folder, aside);
  fs::remove_all(aside);
}

void remove_leftovers(const stdfs::path& folder) {
  for (const std::string& name : names_in(folder)) {
    if (is_leftover(name)) fs::remove_all(folder / name);
  }
}

void retain(const stdfs::path& folder, const std::vector<StoredCheckpoint>& all, int64_t newest,
            int64_t keep_best) {
  std::set<int64_t> kept{newest};
  std::vector<StoredCheckpoint> best = best_first(all);
  for (int64_t i = 0; i < std::min<int64_t>(keep_best, std::ssize(best)); ++i) {
    kept.insert(best[i].step);
  }
  for (const StoredCheckpoint& stored : all) {
    if (!kept.contains(stored.step)) {
      or_warn("cannot remove an old one",
              [&] { remove_checkpoint(folder / folder_name(stored.step)); });
    }
  }
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

/// The manifest of step-N, which must be of step N; the files are not looked at.
StoredCheckpoint read_stored(const stdfs::path& folder) {
  StoredCheckpoint stored = read_manifest(folder);
  if (auto step = step_of(folder.filename().string()); step && *step != stored.step) {
    throw Error(folder.string() + ": its manifest is of step " + std::to_string(stored.step),
                ExitCode::checkpoint);
  }
  return stored;
}

/// Size and digest as the manifest says.
void verify_file(const stdfs::path& path, const safetensors::Written& expected) {
  auto fail = [&](const std::string& cause) {
    throw Error(path.string() + ": " + cause, ExitCode::checkpoint);
  };
  std::error_code error;
  uint64_t bytes = stdfs::file_size(path, error);
  if (error)
    fail("cannot be read: " + error.message() +
         "; copy the whole folder again, or use another checkpoint");
  if (bytes != expected.bytes) {
    fail("has " + std::to_string(bytes) + " bytes, but the manifest says " +
         std::to_string(expected.bytes) + "; copy it again, or use another checkpoint");
  }
  std::string digest;
  try {
    digest = sha256_of_file(path);
  } catch (const Error& failure) {
    throw Error(failure.what(), ExitCode::checkpoint);
  }
  if (digest != expected.sha256) {
    fail(
        "its SHA-256 is not the manifest's: the file was changed or damaged; copy it again, or "
        "use another checkpoint");
  }
}

/// The checkpoint at `folder` if it verifies; says in the log when it does not.
std::optional<StoredCheckpoint> verified(const stdfs::path& folder) {
  try {
    return verify_checkpoint(folder);
  } catch (const Error& error) {
    log::warning("passing over a checkpoint: " + std::string(error.what()));
    return std::nullopt;
  }
}

}  // namespace

StoredCheckpoint verify_checkpoint(const stdfs::path& folder) {
  StoredCheckpoint stored = read_stored(folder);
  for (const ManifestFile& file : files_of(stored.manifest)) {
    verify_file(folder / file.name, file.written);
  }
  return stored;
}

StoredCheckpoint write_checkpoint(const stdfs::path& folder, const CheckpointContent& content) {
  std::error_code ignored;
  if (stdfs::exists(folder, ignored))
    throw Error(folder.string() + " is there already; name a new folder", ExitCode::usage);
  const stdfs::path temporary = fs::temporary_name(folder);
  const stdfs::path parent = folder.has_parent_path() ? folder.parent_path() : ".";
  try {
    fs::make_folders(parent);
    write_all(temporary, content);
    fs::rename(temporary, folder);
    fs::sync_folder(parent);
  } catch (const std::exception& error) {
    or_warn("cannot remove a failed save", [&] { fs::remove_all(temporary); });
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
    or_warn("cannot remove what a killed save left", [&] { remove_leftovers(folder_); });
    bool exists = stdfs::exists(folder, ignored);
    std::optional<StoredCheckpoint> there = exists ? verified(folder) : std::nullopt;
    if (!there) {
      write_all(temporary, content);
      if (exists) remove_checkpoint(folder);
      fs::rename(temporary, folder);
    }
    fs::sync_folder(folder_);
    StoredCheckpoint stored = there ? *there : read_manifest(folder);
    or_warn("cannot clean up", [&] { retain(folder_, all(), content.step, keep_best_); });
    return stored;
  } catch (const std::exception& error) {
    or_warn("cannot remove a failed save", [&] { fs::remove_all(temporary); });
    throw Error(
        "cannot save the checkpoint of step " + std::to_string(content.step) + ": " + error.what(),
        ExitCode::checkpoint);
  }
}

std::optional<StoredCheckpoint> CheckpointStore::newest() const {
  std::vector<int64_t> steps = steps_in(folder_);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (auto stored = verified(folder_ / folder_name(*step))) return stored;
  }
  return std::nullopt;
}

std::optional<StoredCheckpoint> CheckpointStore::best() const {
  for (const StoredCheckpoint& candidate : best_first(all())) {
    if (auto stored = verified(candidate.folder)) return stored;
  }
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
