#include "checkpoint/manifest.h"

#include <algorithm>
#include <cmath>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/sha256.h>

namespace dsv3 {
namespace {

/// 1 if the file of rank 0 has all tensors, whole; else 2. Older versions of dsv3 read only 1.
constexpr int kOneFile = 1, kManyFiles = 2;
constexpr uint64_t kMaxBytes = uint64_t{256} << 20;

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

/// JSON cannot represent NaN or infinity: nlohmann::json would silently write null.
void check_finite(const Json& json, const std::string& where) {
  check(!json.is_number_float() || std::isfinite(json.get<double>()),
        where + " is not a finite number, which JSON cannot represent");
  if (!json.is_structured()) return;
  for (const auto& [key, value] : json.items()) check_finite(value, where + "." + key);
}

}  // namespace

Json files_to_json(const std::vector<ManifestFile>& files) {
  Json list = Json::array();
  for (const ManifestFile& file : files)
    list.push_back(
        {{"name", file.name}, {"bytes", file.written.bytes}, {"sha256", file.written.sha256}});
  return list;
}

std::string make_manifest(const CheckpointContent& content, const std::vector<ManifestFile>& files,
                          const PieceLists& pieces) {
  check_finite(content.state, "state");
  const auto tensor_files = std::ranges::count_if(
      files, [](const ManifestFile& file) { return is_tensor_file(file.name); });
  Json manifest = {{"format", tensor_files == 1 && pieces.empty() ? kOneFile : kManyFiles},
                   {"step", content.step},
                   {"tokens", content.tokens},
                   {"val_loss", content.val_loss ? number_to_json(*content.val_loss) : Json()},
                   {"files", files_to_json(files)},
                   {"state", content.state}};
  if (!pieces.empty()) manifest["pieces"] = pieces_to_json(pieces);
  std::string text;
  try {
    manifest["sha256"] = digest_of(manifest);
    text = manifest.dump(1) + "\n";
  } catch (const Json::exception& error) {
    throw Error(std::string("the checkpoint's state is not valid JSON: ") + error.what());
  }
  check(text.size() <= kMaxBytes, "the manifest would be larger than 256 MiB");
  return text;
}

StoredCheckpoint parse_manifest(const std::filesystem::path& folder, const Json& manifest) {
  const int64_t format = count_from(manifest, "format");
  check(format == kOneFile || format == kManyFiles,
        "format " + std::to_string(format) +
            " is not supported (this dsv3 reads 1 and 2); use the dsv3 version that wrote it");
  check(text_from(manifest, "sha256") == digest_of(manifest),
        "digest does not match the content: the file was changed or damaged; copy it again, or use "
        "another checkpoint");
  const Json& loss = field(manifest, "val_loss");
  check(!files_of(manifest).empty(), "lists no files");
  pieces_of(manifest);
  return {folder, count_from(manifest, "step"), count_from(manifest, "tokens"),
          loss.is_null() ? std::nullopt : std::optional(number_from_json(loss)), manifest};
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
    return parse_manifest(folder, manifest);
  } catch (const Error& error) {
    throw Error(path.string() + ": " + error.what(), ExitCode::checkpoint);
  }
}

std::vector<ManifestFile> files_of(const Json& manifest) {
  return files_from_json(field(manifest, "files"));
}

std::vector<ManifestFile> files_from_json(const Json& list) {
  std::vector<ManifestFile> files;
  check(list.is_array(), "'files' is not a list");
  for (const Json& json : list) {
    const std::string name = text_from(json, "name");
    check(is_plain_name(name), "'" + name + "' is not a plain file name");
    files.push_back({name, {uint64_t(count_from(json, "bytes")), text_from(json, "sha256")}});
  }
  return files;
}

PieceLists pieces_of(const Json& manifest) {
  std::set<std::string> files;
  for (const ManifestFile& file : files_of(manifest)) files.insert(file.name);
  PieceLists lists;
  if (manifest.contains("pieces")) lists = pieces_from_json(manifest.at("pieces"), files);
  require_complete(lists);
  return lists;
}

}  // namespace dsv3
