// Writes, reads and checks manifest.json, the list of a checkpoint's files.
#pragma once

#include <dsv3/runtime/checkpoint.h>

namespace dsv3 {

inline constexpr const char* kManifestName = "manifest.json";

/// A file listed in a manifest.
struct ManifestFile {
  std::string name;  ///< plain, without folders
  safetensors::Written written;
};

/// Returns the content of manifest.json, including a digest of all other values in it.
std::string make_manifest(const CheckpointContent& content, const std::vector<ManifestFile>& files);

/// Reads and checks the manifest in `folder`, but none of the files it lists. Throws dsv3::Error
/// (ExitCode::checkpoint) with the path and the cause.
StoredCheckpoint read_manifest(const std::filesystem::path& folder);

/// The files listed in a checked manifest.
std::vector<ManifestFile> files_of(const Json& manifest);

}  // namespace dsv3
