// manifest.json of a checkpoint: writing, reading and checking it.
#pragma once

#include <dsv3/runtime/checkpoint.h>

namespace dsv3 {

inline constexpr const char* kManifestName = "manifest.json";

/// A file that a manifest names.
struct ManifestFile {
  std::string name;  ///< plain, without folders
  safetensors::Written written;
};

/// The text of manifest.json, with a digest of everything else in it.
std::string make_manifest(const CheckpointContent& content, const std::vector<ManifestFile>& files);

/// Reads and checks `folder`'s manifest, but none of the files it names. Throws dsv3::Error
/// (ExitCode::checkpoint) with the path and the cause.
StoredCheckpoint read_manifest(const std::filesystem::path& folder);

/// The files that a checked manifest names.
std::vector<ManifestFile> files_of(const Json& manifest);

}  // namespace dsv3
