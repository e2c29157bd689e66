#include "checkpoint/manifest.h"

#include <cmath>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/sha256.h>

namespace dsv3 {
namespace {

constexpr int kFormat = 1;
constexpr uint64_t kMaxBytes = uint64_t{64} << 20;

/// Digest of a manifest's values rather than its bytes, so that formatting does not matter.
std::string digest_of(Json manifest) {
  manifest.erase("sha256");
  return sha256(manifest.dump());
}

/// Throws an error with message `what` unless `ok`. The caller adds the path.
void check(bool ok, const std::string& what) {
  if (!ok) throw Error(what);
}

const Json& field(const Json& json, const char* key) {
  check(json.is_object() && json.contains(key), std::string("no '") + key + "'");
  return json.at(key);
}

int64_t count_from(const Json& json, const char* key) {
  const Json& value = field(json, key);
  check(value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX,
        std::string("'") + key + "' is not a non-negative integer");
  return value.get<int64_t>();
}

std::string text_from(const Json& json, const char* key) {
  const Json& value = field(json, key);
  check(value.is_string(), std::string("'") + key + "' is not a string");
  return value.get<std::string>();
}

/// Rejects paths, so that a manifest cannot refer to files outside its folder.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find_first_of("/\\") == std::string::npos &&
         name.find('\0') == std::string::npos;
}

StoredCheckpoint parse(const std::filesystem::path& folder, const Json& manifest) {
  const int64_t format = count_from(manifest, "format");
  check(format == kFormat, "format " + std::to_string(format) +
                               " is not supported (this dsv3 reads " + std::to_string(kFormat) +
                               "); use the dsv3 version that wrote it");
  check(text_from(manifest, "sha256") == digest_of(manifest),
        "digest does not match the content: the file was changed or damaged; copy it again, or use "
        "another checkpoint");
  const Json& loss = field(manifest, "val_loss");
  check(!files_of(manifest).empty(), "lists no files");
  return {folder, count_from(manifest, "step"), count_from(manifest, "tokens"),
          loss.is_null() ? std::nullopt : std::optional(number_from_json(loss)), manifest};
}

/// JSON cannot represent NaN or infinity: nlohmann::json would silently write null.
void check_finite(const Json& json, const std::string& where) {
  check(!json.is_number_float() || std::isfinite(json.get<double>()),
        where + " is not a finite number, which JSON cannot represent");
  if (!json.is_structured()) return;
  for (const auto& [key, value] : json.items()) check_finite(value, where + "." + key);
}

}  // namespace

std::string make_manifest(const CheckpointContent& content,
                          const std::vector<ManifestFile>& files) {
  check_finite(content.state, "state");
  Json manifest = {{"format", kFormat},
                   {"step", content.step},
                   {"tokens", content.tokens},
                   {"val_loss", content.val_loss ? number_to_json(*content.val_loss) : Json()},
                   {"files", Json::array()},
                   {"state", content.state}};
  for (const ManifestFile& file : files)
    manifest["files"].push_back(
        {{"name", file.name}, {"bytes", file.written.bytes}, {"sha256", file.written.sha256}});
  try {
    manifest["sha256"] = digest_of(manifest);
    return manifest.dump(1) + "\n";
  } catch (const Json::exception& error) {
    throw Error(std::string("the checkpoint's state is not valid JSON: ") + error.what());
  }
}

StoredCheckpoint read_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kManifestName;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored))
    throw Error(path.string() + ": missing; the folder is not a complete checkpoint",
                ExitCode::checkpoint);
  Json manifest;
  try {
    manifest = parse_json(fs::read(path, kMaxBytes), path.string());
  } catch (const Error& error) {
    throw Error(error.what() + std::string("; copy it again, or use another checkpoint"),
                ExitCode::checkpoint);
  }
  try {
    return parse(folder, manifest);
  } catch (const Error& error) {
    throw Error(path.string() + ": " + error.what(), ExitCode::checkpoint);
  }
}

std::vector<ManifestFile> files_of(const Json& manifest) {
  std::vector<ManifestFile> files;
  const Json& list = field(manifest, "files");
  check(list.is_array(), "'files' is not a list");
  for (const Json& json : list) {
    const std::string name = text_from(json, "name");
    check(is_plain_name(name), "'" + name + "' is not a plain file name");
    files.push_back({name, {uint64_t(count_from(json, "bytes")), text_from(json, "sha256")}});
  }
  return files;
}

}  // namespace dsv3
