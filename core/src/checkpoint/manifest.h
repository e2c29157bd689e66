// Writes, reads and checks manifest.json, the list of a checkpoint's files and pieces.
#pragma once

#include "checkpoint/pieces.h"

namespace dsv3 {

inline constexpr const char* kManifestName = "manifest.json";

/// A file listed in a manifest.
struct ManifestFile {
  std::string name;  ///< plain, without folders
  safetensors::Written written;
};

/// Converts files to a list for a manifest, and back.
Json files_to_json(const std::vector<ManifestFile>& files);
std::vector<ManifestFile> files_from_json(const Json& list);

/// Returns the content of manifest.json, including a digest of all other values in it. `pieces`
/// are those of all ranks, in the order of require_complete().
std::string make_manifest(const CheckpointContent& content, const std::vector<ManifestFile>& files,
                          const PieceLists& pieces);

/// Reads and checks the manifest in `folder`, including its pieces, but none of the files that it
/// lists. Throws dsv3::Error (ExitCode::checkpoint) with the path and the cause.
StoredCheckpoint read_manifest(const std::filesystem::path& folder);

/// Checks the manifest of `folder`. Throws like read_manifest(), but without the path.
StoredCheckpoint parse_manifest(const std::filesystem::path& folder, const Json& manifest);

/// The files listed in a manifest that was checked.
std::vector<ManifestFile> files_of(const Json& manifest);

/// The pieces listed in a manifest.
PieceLists pieces_of(const Json& manifest);

}  // namespace dsv3
